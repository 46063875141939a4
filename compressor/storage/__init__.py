"""Files that are whole or absent, sealed tensors, checkpoints, and digests of source code."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
