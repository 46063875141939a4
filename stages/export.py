"""Write the ONNX file that ships, and compare it with the network it came from."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field

from compressor import evaluation, models
from compressor.config.spec import validated_copy
from compressor.errors import StageError
from compressor.pipeline.stage import Stage

if TYPE_CHECKING:
    from compressor import Context, OnnxModel, TorchModel

ONNX_RUNTIME = "onnxruntime"


class Export(Stage):
    """Export to ONNX and compare with the torch network on the validation images, in the engines it is for."""

    model_config = ConfigDict(validate_by_name=True, serialize_by_alias=True)

    example: ClassVar[dict[str, Any]] = {"stage": "export"}

    stage: Literal["export"] = "export"
    opset: int = Field(18, ge=18, le=23)
    """The version of ONNX's operators that the file uses."""
    agreement: float = Field(0.99, ge=0, le=1)
    """The smallest share of validation images that torch and an engine must put in the same class."""
    for_: tuple[Literal["onnxruntime", "openvino", "tensorrt"], ...] = Field(
        ("onnxruntime",), alias="for", min_length=1, exclude_if=("onnxruntime",).__eq__
    )
    """The engines that will run it, in which it is checked, scored and timed; `tensorrt` gets a file of its own."""

    def for_dry_run(self) -> Self:
        """Accept any agreement: an untrained network is undecided between classes."""
        return validated_copy(self, agreement=0.0)

    def decided_by(self, context: "Context") -> Any:
        """Which of the engines can run here."""
        return {name: evaluation.why_not_here(name) for name in self._engines} or None

    @property
    def _engines(self) -> tuple[str, ...]:
        """All but ONNX Runtime, which every file is for, each once."""
        return tuple(name for name in dict.fromkeys(self.for_) if name != ONNX_RUNTIME)

    def run(self, model: "TorchModel", context: "Context") -> "OnnxModel":
        """The ONNX file.

        Raises:
            StageError: it cannot be written, or agrees with the network on too few images.
            ArtifactError: an engine that is installed cannot read it.
        """
        exported = model.to_onnx(context.pipeline, self.opset)
        found = {ONNX_RUNTIME: self._agreement(ONNX_RUNTIME, model, exported, context)}
        own_files = {}
        for name in self._engines:
            own = model.for_engine(name)
            file = own.to_onnx(context.pipeline, self.opset, signed=own is not model)
            if own is not model:
                own_files[name] = file.content
            found[name] = self._agreement(name, own, file, context)
        details = {"opset": self.opset, "agreement": found.pop(ONNX_RUNTIME)}
        return exported.for_engines(self._engines, own_files, details={**details, "engines": found})

    def _agreement(self, name: str, model: "TorchModel", exported: "OnnxModel", context: "Context") -> dict[str, Any]:
        """How well a file agrees with its network in the engine that it is for."""
        data, console = context.data, context.services.console
        with TemporaryDirectory() as folder:
            onnx = Path(folder, models.ONNX)
            onnx.write_bytes(exported.content)
            opened = evaluation.Opened.of(name, onnx, data.preprocess)
            with console.progress(f"checking agreement in {opened.title}", len(data.validation)) as advance:
                found = models.agreement_of(model, opened.logits_of, data.validation, advance)
        if found["top1_agreement"] < self.agreement:
            raise StageError(
                f"{opened.title} and torch agree on {found['same_top1']} of {found['images']} validation images, under "
                f"the {self.agreement:.1%} asked for; the largest logit difference is "
                f"{found['largest_logit_difference']:.3g}"
            )
        return {**found, "engine": opened.engine, **({} if opened.reason is None else {"reason": opened.reason})}
