"""Write the ONNX file that ships, and compare it with the network it came from."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from compressor import models
from compressor.config.spec import validated_copy
from compressor.errors import StageError
from compressor.pipeline.stage import Stage

if TYPE_CHECKING:
    from compressor import Context, OnnxModel, TorchModel


class Export(Stage):
    """Export to ONNX and compare with the torch network on the validation images, in ONNX Runtime."""

    example: ClassVar[dict[str, Any]] = {"stage": "export"}

    stage: Literal["export"] = "export"
    opset: int = Field(18, ge=18, le=23)
    """The version of ONNX's operators that the file uses."""
    agreement: float = Field(0.99, ge=0, le=1)
    """The smallest share of validation images that torch and ONNX Runtime must put in the same class."""

    def for_dry_run(self) -> Self:
        """Accept any agreement: an untrained network is undecided between classes."""
        return validated_copy(self, agreement=0.0)

    def run(self, model: "TorchModel", context: "Context") -> "OnnxModel":
        """The ONNX file.

        Raises:
            StageError: it cannot be written, or agrees with the network on too few images.
        """
        exported = model.to_onnx(context.pipeline, self.opset)
        data, console = context.data, context.services.console
        with console.progress("checking agreement", len(data.validation)) as advance:
            found = models.agreement_of(model, exported, data.validation, advance)
        if found["top1_agreement"] < self.agreement:
            raise StageError(
                f"ONNX Runtime and torch agree on {found['same_top1']} of {found['images']} validation images, under "
                f"the {self.agreement:.1%} asked for; the largest logit difference is "
                f"{found['largest_logit_difference']:.3g}"
            )
        return exported.with_details({"opset": self.opset, "agreement": found})
