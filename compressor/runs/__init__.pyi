from .comparison import comparison_of as comparison_of
from .comparison import comparison_remarks as comparison_remarks
from .comparison import comparison_table as comparison_table
from .comparison import drift as drift
from .comparison import load_run as load_run
from .comparison import surroundings as surroundings
from .dry_run import try_stages as try_stages
from .runner import run as run
