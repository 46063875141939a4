from .dry_run import rehearse as rehearse
from .runner import run as run
