"""Train a student to give its teacher's answers (Hinton, Vinyals and Dean 2015)."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from compressor.artifact import TorchModel
from compressor.distillation import Cache, Teacher, loss_from
from compressor.fit import fit
from compressor.stage import Context, Stage, Start
from compressor.training import Training


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

    def run(self, model: TorchModel | None, context: Context) -> TorchModel:
        """The trained student.

        Raises:
            UserError: there is no such teacher, or the student does not fit the data.
            StageError: training diverged.
        """
        student = self.start(model, context)
        network = student.copy_network()
        teacher = Teacher(context.teacher(self.teacher), context, self.cache)
        loss = loss_from(teacher, self.temperature, self.alpha)
        details = fit(network, loss, self, context, label=self.id, views=self.cache.views if self.cache else None)
        return student.with_network(network, details=details)
