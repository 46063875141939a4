"""The stages that come with compressor, one module each."""

from stages.distill import Cache, Distill
from stages.export import Export
from stages.prune import Prune, Target
from stages.quantize import Quantize
from stages.train import Train

__all__ = ["Cache", "Distill", "Export", "Prune", "Quantize", "Target", "Train"]
