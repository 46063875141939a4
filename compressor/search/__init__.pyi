from .found import Found as Found
from .searching import HERE as HERE
from .searching import search as search
from .settings import Search as Search
from .space import Space as Space
from .space import load as load
from .wording import headline as headline
