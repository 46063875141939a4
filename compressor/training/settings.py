"""The training settings that stages share."""

from operator import not_
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from compressor.config.spec import Spec, validated_copy

DEFAULT_RATE = {"sgd": 0.1, "adamw": 0.001}
DRY_RUN_RATE = 1e-4
BODY = "body"  # everything but the classifier
Precision = Literal["auto", "fp32", "bf16"]
Rate = Annotated[float, Field(gt=0, le=10, strict=True)]


class Training(Spec):
    """Settings of stages that train."""

    epochs: int = Field(ge=0, le=100_000)
    """Passes over the training images."""
    batch_size: int = Field(128, ge=1, le=65_536)
    """Images in each step."""
    accumulate: int = Field(1, ge=1, le=1024)
    """Run each step's batch in so many parts, whose gradients add up: for batches that do not fit into memory."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with Nesterov momentum, or AdamW."""
    learning_rate: float | None = Field(None, gt=0, le=10)
    """The peak learning rate; 0.1 for SGD and 0.001 for AdamW by default."""
    learning_rates: dict[str, Rate] = {}
    """Peaks of their own for modules or parameters, by name; `{body: 0.001}` is for all but the classifier."""
    freeze: tuple[str, ...] = ()
    """Modules or parameters that stay as they are, by name, or `body`; BatchNorms in them keep their statistics too."""
    unfreeze: tuple[str, ...] = ()
    """Exceptions from `freeze`: modules or parameters in what it names."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """The momentum of SGD."""
    weight_decay: float = Field(5e-4, ge=0, le=1)
    """Weight decay; norms and biases are left out unless `decay_all`."""
    decay_all: bool = False
    """Decay norms and biases too."""
    schedule: Literal["cosine", "one_cycle", "multi_step", "constant"] = "cosine"
    """Cosine to 0, one-cycle (Smith 2018), division by 10 after each of `milestones`, or constant."""
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """The epochs after which multi_step lowers the learning rate."""
    warmup_epochs: int = Field(0, ge=0, le=100_000)
    """Epochs of linear warm-up to the peak before the schedule starts."""
    ema: float | None = Field(None, gt=0, lt=1)
    """The decay of an exponential moving average of the weights, which training then returns; off by default."""
    keep: Literal["last", "best"] = "last"
    """Keep the last epoch, or the one that is best on validation (the initial network counts as epoch 0)."""
    balance: Literal["sampler", "weights"] | None = Field(None, exclude_if=not_)
    """For classes of different sizes: draw each equally often, or weigh its loss on labels by 1 / its frequency."""
    precision: Precision = "auto"
    """`auto` is bf16 autocast where the processor has it, else fp32."""
    cuda_graphs: bool = Field(False, exclude_if=not_)
    """On a GPU, record the network's kernels once and replay them: most of a small network's step is launching them."""
    compile: bool = Field(False, exclude_if=not_)
    """Compile the network for training (`torch.compile`): fewer kernels, after half a minute for each size of batch."""

    @model_validator(mode="after")
    def _schedule_is_whole(self) -> Self:
        if (self.schedule == "multi_step") != bool(self.milestones):
            raise ValueError(
                "schedule multi_step and milestones go together, as in {schedule: multi_step, milestones: [10]}"
            )
        if self.schedule == "one_cycle" and self.warmup_epochs:
            raise ValueError("schedule one_cycle has its own warm-up; leave warmup_epochs out")
        return self

    @model_validator(mode="after")
    def _batches_have_parts(self) -> Self:
        if self.accumulate > self.batch_size:
            raise ValueError(f"a batch of {self.batch_size} cannot be run in {self.accumulate} parts")
        if self.accumulate > 1 and self.cuda_graphs:
            raise ValueError("gradients that are replayed cannot be added up; leave accumulate or cuda_graphs out")
        return self

    @model_validator(mode="after")
    def _exceptions_are_of_something(self) -> Self:
        if self.unfreeze and not self.freeze:
            raise ValueError("unfreeze makes exceptions from freeze, which names nothing; leave it out")
        return self

    def for_dry_run(self) -> Self:
        """At most one epoch, at a harmless learning rate. Nothing is compiled, which would take longest.

        Parts of a batch hold two of its few images, unless those of the training hold a single one.
        """
        return validated_copy(
            self,
            compile=False,
            epochs=min(self.epochs, 1),
            accumulate=self.accumulate if self.batch_size < 2 * self.accumulate else min(self.accumulate, 2),
            learning_rate=min(self.peak_rate, DRY_RUN_RATE),
            learning_rates={name: min(rate, DRY_RUN_RATE) for name, rate in self.learning_rates.items()},
        )

    @property
    def data_parallel(self) -> bool:
        """Whether all processes of a run take part, each with a part of every batch."""
        return self.epochs > 0

    @property
    def peak_rate(self) -> float:
        """The peak learning rate."""
        return self.learning_rate or DEFAULT_RATE[self.optimizer]
