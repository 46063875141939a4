from .batch_norm import batch_statistics as batch_statistics
from .batch_norm import estimate_batch_norm as estimate_batch_norm
from .batch_norm import match_batch_norm as match_batch_norm
