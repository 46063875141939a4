"""The distillation settings that stages share."""

from dataclasses import replace
from operator import not_
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from compressor.config.spec import Spec
from compressor.training.settings import Training

if TYPE_CHECKING:
    from torch import nn

    from compressor.pipeline.context import Context
    from compressor.training.objectives import Objective


FROM_TEACHERS = (
    "losses", "standardise", "temperature", "temperature_end", "alpha", "alpha_end", "cache", "unlabeled", "features"
)  # fmt: skip


class Cache(Spec):
    """Store the teacher's outputs for augmented views of the training images, once, and cycle through them."""

    views: int = Field(ge=1, le=10_000)
    """How many views of every image."""


class _Loss(Spec):
    weight: float = Field(1.0, gt=0, le=1e6)
    """What the loss is multiplied by before it is added; of several layers, what their mean is."""


class KL(_Loss):
    """KL divergence of softened probabilities (Hinton, Vinyals and Dean 2015)."""

    loss: Literal["kl"] = "kl"
    """Which loss this is."""


class DKD(_Loss):
    """KL divergence in two parts: the label against the rest, and the rest among itself (Zhao et al. 2022)."""

    loss: Literal["dkd"] = "dkd"
    """Which loss this is."""
    target: float = Field(1.0, ge=0, le=1e6)
    """The weight of the label against the rest, the paper's α."""
    others: float = Field(8.0, ge=0, le=1e6)
    """The weight of the rest among itself, the paper's β."""


class DIST(_Loss):
    """Correlation of probabilities, over classes and over images (Huang et al. 2022)."""

    loss: Literal["dist"] = "dist"
    """Which loss this is."""
    inter: float = Field(1.0, ge=0, le=1e6)
    """The weight of the correlation over the classes of an image, the paper's β."""
    intra: float = Field(1.0, ge=0, le=1e6)
    """The weight of the correlation over the images of a class, the paper's γ."""


class MSE(_Loss):
    """Mean squared error of logits (Kim et al. 2021)."""

    loss: Literal["mse"] = "mse"
    """Which loss this is."""


class _OnLayers(_Loss):
    student: str | None = None
    """The student's layer, by its module name, as in `layer2`."""
    teacher: str | None = None
    """The teacher's layer; without names, a student made of its teacher's blocks learns where each stage ends."""

    @model_validator(mode="after")
    def _both_are_named_or_none(self) -> Self:
        if (self.student is None) != (self.teacher is None):
            raise ValueError("`student` and `teacher` name a layer of each network; name both, or neither")
        return self


class Hints(_OnLayers):
    """Train a layer of the student to predict a layer of the teacher (FitNets; Romero et al. 2015)."""

    loss: Literal["hints"] = "hints"
    """Which loss this is."""


class Attention(_OnLayers):
    """Let a layer of the student be large where a layer of the teacher is (Zagoruyko and Komodakis 2017)."""

    loss: Literal["attention"] = "attention"
    """Which loss this is."""


class SRD(_Loss):
    """Train what the student's classifier reads to predict what the teacher's does (Miles and Mikolajczyk 2024)."""

    loss: Literal["srd"] = "srd"
    """Which loss this is."""


def _named(*known: type[Spec]) -> Discriminator:
    """A loss is told by its name."""
    names = " or ".join(f"`loss: {each.model_fields['loss'].default}`" for each in known)
    return Discriminator(
        lambda value: value.get("loss") if isinstance(value, dict) else getattr(value, "loss", None),
        custom_error_type="loss_name",
        custom_error_message=f"expected a mapping with {names}",
    )


OnLogits = Annotated[
    Annotated[KL, Tag("kl")] | Annotated[DKD, Tag("dkd")] | Annotated[DIST, Tag("dist")] | Annotated[MSE, Tag("mse")],
    _named(KL, DKD, DIST, MSE),
]
OnLayers = Annotated[
    Annotated[Hints, Tag("hints")] | Annotated[Attention, Tag("attention")] | Annotated[SRD, Tag("srd")],
    _named(Hints, Attention, SRD),
]


class Distillation(Training):
    """Settings for learning from one or several teachers."""

    teacher: str | None = None
    """The id of an earlier stage."""
    teachers: tuple[str, ...] = ()
    """The ids of earlier stages, instead of one `teacher`."""
    weighting: Literal["equal", "accuracy"] = "equal"
    """Weigh several teachers equally, or by accuracy on the validation images (equally if none is ever correct)."""
    losses: tuple[OnLogits, ...] = Field((KL(),), min_length=1, exclude_if=(KL(),).__eq__)
    """What is learned from the teachers' logits; several are added."""
    standardise: bool = Field(False, exclude_if=not_)
    """Take the mean from the logits of every image, and divide them by their standard deviation (Sun et al. 2024)."""
    temperature: float = Field(4.0, ge=0.1, le=100)
    """T: the logits of both networks are divided by it."""
    temperature_end: float | None = Field(None, ge=0.1, le=100, exclude_if=not_)
    """The temperature at the end of training, if it changes; linear in between."""
    alpha: float = Field(0.9, ge=0, le=1)
    """The teachers' share of the loss."""
    alpha_end: float | None = Field(None, ge=0, le=1, exclude_if=lambda value: value is None)
    """Their share at the end of training, if it changes; linear in between."""
    cache: Cache | None = None
    """Store the teachers' outputs, instead of running them at every step."""
    unlabeled: bool = Field(False, exclude_if=not_)
    """Learn from the images of `data.unlabeled` too, which only teachers know something of; with `alpha: 1`."""
    features: tuple[OnLayers, ...] = ()
    """Losses on inner layers, added to the loss on logits; with several teachers, the layers are those of the first."""

    @model_validator(mode="after")
    def _inner_layers_are_seen(self) -> Self:
        if self.features and (self.compile or self.cuda_graphs):
            raise ValueError(
                "features read inner layers of a network that is run as it is; leave compile and cuda_graphs out"
            )
        return self

    @model_validator(mode="after")
    def _teachers_are_one_or_several(self) -> Self:
        if self.teacher is not None and self.teachers:
            raise ValueError("`teacher` names one, `teachers` names several; leave one of the two out")
        if self.teachers and len(set(self.teachers)) < max(len(self.teachers), 2):
            raise ValueError("`teachers` needs at least two different ids; name a single one with `teacher:`")
        default = Distillation.model_fields
        for name in FROM_TEACHERS:
            if not self.teacher_ids and getattr(self, name) != default[name].default:
                raise ValueError(f"{name} needs a teacher; name one with `teacher:`, or leave {name} out")
        if not self.teachers and self.weighting != default["weighting"].default:
            raise ValueError("weighting needs several teachers; name them with `teachers:`, or leave weighting out")
        if self.teacher_ids and self.balance == "weights" and self.alpha == 1 and self.alpha_end in (None, 1):
            raise ValueError("balance: weights weighs the loss on labels, of which alpha 1 leaves none; lower alpha")
        if self.unlabeled and (self.alpha < 1 or self.alpha_end not in (None, 1) or self.balance):
            raise ValueError(
                "unlabeled images have no class to learn; set alpha: 1, and leave alpha_end and balance out"
            )
        if self.unlabeled and any(isinstance(loss, DKD) for loss in self.losses):
            raise ValueError("the loss dkd needs a class for every image, which unlabeled ones lack; use another loss")
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

    def shown(self, context: "Context") -> "Context":
        """The context, with the images that training shows.

        Raises:
            UserError: unlabeled images are wanted, and there are none.
        """
        return replace(context, data=context.data.with_unlabeled()) if self.unlabeled else context

    def objective(self, network: "nn.Module", context: "Context") -> "tuple[Objective, list[float]]":
        """What training `network` minimises, and the weight of each teacher, in their order; the weights sum to 1.

        Raises:
            UserError: there is no such teacher, or no such layer.
        """
        from compressor.distillation import objective  # importing torch takes seconds; wrong pipelines fail before

        return objective.objective_of(self, network, context)
