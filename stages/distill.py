"""Train a student to give its teacher's answers (Hinton, Vinyals and Dean 2015)."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from compressor.artifact import TorchModel
from compressor.distillation import Teacher, loss_from
from compressor.fit import fit
from compressor.spec import Spec
from compressor.stage import Context, Stage, Start
from compressor.training import Training


class Cache(Spec):
    """Store the teacher's outputs for augmented views of the training images, once, and cycle through them.

    Attributes:
        views: how many views of every image.
    """

    views: int = Field(ge=1, le=10_000)


class Distill(Start, Training, Stage[TorchModel | None, TorchModel]):
    """Minimise α · T² · KL(teacher ‖ student) + (1 − α) · cross-entropy, at temperature T.

    Attributes:
        teacher: id of an earlier stage.
        temperature: T, which both networks' logits are divided by.
        alpha: the teacher's share of the loss.
        cache: store the teacher's outputs, rather than run it at every step.
    """

    recovers: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {
        "stage": "distill", "teacher": "teacher", "model": "resnet8", "epochs": 1, "cache": {"views": 2}
    }  # fmt: skip

    stage: Literal["distill"] = "distill"
    teacher: str
    temperature: float = Field(4.0, ge=0.1, le=100)
    alpha: float = Field(0.9, ge=0, le=1)
    cache: Cache | None = None

    def rehearsal(self) -> Self:
        """As any training, with one view."""
        return super().rehearsal().model_copy(update={"cache": Cache(views=1) if self.cache else None})

    def run(self, model: TorchModel | None, context: Context) -> TorchModel:
        """The trained student.

        Raises:
            UserError: there is no such teacher, or the student does not fit the data.
            StageError: training diverged.
        """
        student = self.start(model, context)
        network = student.copy_network()
        views = self.cache.views if self.cache else None
        teacher = Teacher(context.teacher(self.teacher), context, views)
        loss = loss_from(teacher, self.temperature, self.alpha)
        details = fit(network, loss, self, context, label=self.id, views=views)
        return student.with_network(network, details=details)
