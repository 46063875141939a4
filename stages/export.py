"""Write the ONNX file that ships, and compare it with the network it came from."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field

from compressor import evaluation, models
from compressor.config.spec import validated_copy
from compressor.errors import ArtifactError, StageError
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
    """The smallest share of validation images that torch and ONNX Runtime must put in the same class."""
    for_: tuple[Literal["onnxruntime", "openvino", "tensorrt"], ...] = Field(
        ("onnxruntime",), alias="for", min_length=1, exclude_if=("onnxruntime",).__eq__
    )
    """The engines that will run it, in which it is checked, scored and timed; `tensorrt` gets a file of its own."""

    def for_dry_run(self) -> Self:
        """Accept any agreement: an untrained network is undecided between classes."""
        return validated_copy(self, agreement=0.0)

    @property
    def engines(self) -> tuple[str, ...]:
        """All but ONNX Runtime, which every file is for, each once."""
        return tuple(name for name in dict.fromkeys(self.for_) if name != ONNX_RUNTIME)

    def decided_by(self, context: "Context") -> Any:
        """What is here of the engines."""
        return {name: evaluation.state_of(name) for name in self.engines} or None

    def run(self, model: "TorchModel", context: "Context") -> "OnnxModel":
        """The ONNX file.

        Raises:
            StageError: it cannot be written, or ONNX Runtime agrees with the network on too few images.
            ArtifactError: an engine that is installed cannot read it.
        """
        networks = {name: model.for_engine(name) for name in (ONNX_RUNTIME, *self.engines)}
        exported = model.to_onnx(context.pipeline, self.opset)
        own_files = {}
        found = _agreement(model, exported, [name for name, own in networks.items() if own is model], context)
        for name, own in networks.items():
            if own is not model:
                file = own.to_onnx(context.pipeline, self.opset, signed=True)
                own_files[name] = file.content
                found |= _agreement(own, file, [name], context)
        agreement = found.pop(ONNX_RUNTIME)
        if agreement["top1_agreement"] < self.agreement:
            raise StageError(
                f"ONNX Runtime and torch agree on {agreement['same_top1']} of {agreement['images']} validation images, "
                f"under the {self.agreement:.1%} asked for; the largest logit difference is "
                f"{agreement['largest_logit_difference']:.3g}"
            )
        details = {"opset": self.opset, "agreement": agreement, **({"agreement_in": found} if found else {})}
        return exported.for_engines(self.engines, own_files, details=details)


def _agreement(
    model: "TorchModel", exported: "OnnxModel", engines: list[str], context: "Context"
) -> dict[str, dict[str, Any]]:
    """How well a file agrees with its network, by engine; the network computes every image once."""
    data, console = context.data, context.services.console
    with TemporaryDirectory() as folder:
        onnx = Path(folder, models.ONNX)
        onnx.write_bytes(exported.content)
        try:
            opened = {name: evaluation.Opened.of(name, onnx, data.preprocess) for name in engines}
            titles = ", ".join(dict.fromkeys(each.title for each in opened.values()))
            with console.progress(f"checking agreement in {titles}", len(data.validation)) as advance:
                computed = {each.engine: each.logits_of for each in opened.values()}
                found = models.agreement_of(model, computed, data.validation, advance)
        except ArtifactError as error:
            raise ArtifactError(str(error).replace(str(onnx), f"the file for {', '.join(engines)}")) from error
    return {
        name: {**found[each.engine], "engine": each.engine, **({"reason": each.reason} if each.reason else {})}
        for name, each in opened.items()
    }
