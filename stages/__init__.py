"""The stages that come with compressor, one module each."""

from compressor.distillation.distillation import Cache
from compressor.models.size import Share
from stages.distill import Distill
from stages.export import Export
from stages.mask import Mask
from stages.prune import Prune, Target
from stages.prune_blocks import PruneBlocks
from stages.quantize import Quantize
from stages.train import Train

__all__ = ["Cache", "Distill", "Export", "Mask", "Prune", "PruneBlocks", "Quantize", "Share", "Target", "Train"]
