from .distill import Distill as Distill
from .export import Export as Export
from .mask import Mask as Mask
from .prune import Prune as Prune
from .prune import Target as Target
from .prune_blocks import PruneBlocks as PruneBlocks
from .quantize import Quantize as Quantize
from .train import Train as Train
