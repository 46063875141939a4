"""Searching among pipelines: what may vary, what to try next, trials judged on validation images, what was found."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
