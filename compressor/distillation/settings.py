"""The distillation settings that stages share."""

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from compressor.config.spec import Spec
from compressor.training.settings import Training

if TYPE_CHECKING:
    from torch import nn

    from compressor.pipeline.context import Context
    from compressor.training.objectives import Objective


class Cache(Spec):
    """Store the teacher's outputs for augmented views of the training images, once, and cycle through them."""

    views: int = Field(ge=1, le=10_000)
    """How many views of every image."""


class Hints(Spec):
    """Train a layer of the student to predict a layer of the teacher (FitNets; Romero et al. 2015)."""

    loss: Literal["hints"] = "hints"
    """Which loss this is."""
    student: str
    """The student's layer, by its module name, as in `layer2`."""
    teacher: str
    """The teacher's layer, by its module name."""
    weight: float = Field(1.0, gt=0, le=1e6)
    """What the loss is multiplied by before it is added."""


class Distillation(Training):
    """Settings for learning from one or several teachers."""

    teacher: str | None = None
    """The id of an earlier stage."""
    teachers: tuple[str, ...] = ()
    """The ids of earlier stages, instead of one `teacher`."""
    weighting: Literal["equal", "accuracy"] = "equal"
    """Weigh several teachers equally, or by accuracy on the validation images (equally if none is ever correct)."""
    temperature: float = Field(4.0, ge=0.1, le=100)
    """T: the logits of both networks are divided by it."""
    alpha: float = Field(0.9, ge=0, le=1)
    """The teachers' share of the loss."""
    cache: Cache | None = None
    """Store the teachers' outputs, instead of running them at every step."""
    features: tuple[Hints, ...] = ()
    """Losses on inner layers, added to the loss on logits; with several teachers, the layers are those of the first."""

    @model_validator(mode="after")
    def _teachers_are_one_or_several(self) -> Self:
        if self.teacher is not None and self.teachers:
            raise ValueError("`teacher` names one, `teachers` names several; leave one of the two out")
        if self.teachers and len(set(self.teachers)) < max(len(self.teachers), 2):
            raise ValueError("`teachers` needs at least two different ids; name a single one with `teacher:`")
        default = Distillation.model_fields
        for name in ("temperature", "alpha", "cache", "features"):
            if not self.teacher_ids and getattr(self, name) != default[name].default:
                raise ValueError(f"{name} needs a teacher; name one with `teacher:`, or leave {name} out")
        if not self.teachers and self.weighting != default["weighting"].default:
            raise ValueError("weighting needs several teachers; name them with `teachers:`, or leave weighting out")
        if self.teacher_ids and self.balance == "weights" and self.alpha == 1:
            raise ValueError("balance: weights weighs the loss on labels, of which alpha 1 leaves none; lower alpha")
        if self.features and self.cache is not None:
            raise ValueError("features run the teacher at every step, so a cache would save nothing; leave one out")
        return self

    @property
    def teacher_ids(self) -> tuple[str, ...]:
        """The ids of the teachers; empty if the stage learns from labels."""
        return self.teachers if self.teacher is None else (self.teacher,)

    @property
    def views(self) -> int | None:
        """How many views training cycles through; None for a new one in every epoch."""
        return min(self.cache.views, self.epochs) if self.cache is not None else None

    def objective(self, network: "nn.Module", context: "Context") -> "tuple[Objective, list[float]]":
        """What training `network` minimises, and the weight of each teacher, in their order; the weights sum to 1.

        Raises:
            UserError: there is no such teacher, or no such layer.
        """
        from compressor.distillation import objective  # importing torch takes seconds; wrong pipelines fail before

        return objective.objective_of(self, network, context)
