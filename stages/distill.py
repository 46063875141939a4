"""Train a student to match its teacher (Hinton, Vinyals and Dean 2015)."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from compressor import training
from compressor.distillation.settings import DIST as DIST
from compressor.distillation.settings import DKD as DKD
from compressor.distillation.settings import KL as KL
from compressor.distillation.settings import MSE as MSE
from compressor.distillation.settings import SRD as SRD
from compressor.distillation.settings import Attention as Attention
from compressor.distillation.settings import Cache as Cache
from compressor.distillation.settings import Distillation
from compressor.distillation.settings import Hints as Hints
from compressor.pipeline.stage import Stage, Start

if TYPE_CHECKING:
    from compressor import Context, TorchModel


class Distill(Start, Distillation, Stage):
    """Minimise α · T² · KL(teacher ‖ student) + (1 − α) · cross-entropy, at temperature T, or `losses` in place of KL.

    With several teachers (You et al. 2017) the loss is the weighted mean; that of KL has the same gradient as learning
    from the mean of their softened probabilities.
    """

    recovers: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {
        "stage": "distill", "teacher": "teacher", "model": "resnet8", "epochs": 1, "cache": {"views": 2}
    }  # fmt: skip

    stage: Literal["distill"] = "distill"

    @model_validator(mode="after")
    def _has_a_teacher(self) -> Self:
        if not self.teacher_ids:
            raise ValueError("expected `teacher:`, the id of an earlier stage, or `teachers:`, a list of them")
        return self

    def run(self, model: "TorchModel | None", context: "Context") -> "TorchModel":
        """The trained student.

        Raises:
            UserError: there is no such teacher or layer, or the student does not fit the data.
            StageError: training diverged.
        """
        student = self.start(model, context)
        network, context = student.copy_network(), self.shown(context)
        objective, weights = self.objective(network, context)
        details = training.fit(
            network,
            objective,
            self,
            context,
            label=self.id,
            views=self.views,
            start=student,
        )
        return student.with_network(network, details={**details, "teacher_weights": weights})
