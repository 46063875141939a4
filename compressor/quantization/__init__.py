"""Where a network is rounded to integers, how ranges are chosen, and networks that fake int8."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
