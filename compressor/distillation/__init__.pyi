from .settings import Cache as Cache
from .settings import Distillation as Distillation
from .settings import Hints as Hints
