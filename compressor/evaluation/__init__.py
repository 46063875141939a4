"""How accurate and how fast a file is, and what it gets wrong that another got right."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
