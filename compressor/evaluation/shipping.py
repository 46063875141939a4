"""Files as they would ship, made in seconds: ranges hardly change the speed, so a few images calibrate them."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from compressor.evaluation.engines.base import Subject
from compressor.evaluation.latency import Latency, in_sessions
from compressor.evaluation.pair import Pair
from compressor.evaluation.setting import REFERENCE, Setting
from compressor.export import export_onnx
from compressor.models.artifact import TorchModel
from compressor.quantization import Placement, QuantizedNetwork, calibrate, quantize_network

SETTING = Setting(engine=REFERENCE, device="cpu", threads=1, batch=1)
ROUGH_IMAGES = 8


def roughly_quantized(
    model: TorchModel,
    images: Tensor,
    *,
    placement: Placement = "layers",
    skip: Sequence[str] = (),
    weight_bits: int = 8,
) -> QuantizedNetwork:
    """The network with integers, whose ranges are those of a few images.

    Args:
        model: a float network.
        images: normalised, `[N, C, H, W]`.
        placement: what is rounded.
        skip: names of layers that stay in float.
        weight_bits: 8 or 7.

    Raises:
        ArchitectureError: the network cannot be traced, or has no layer that `skip` names.
    """
    network = quantize_network(
        model.copy_network(),
        model.preprocess.input_shape(2),
        skip=skip,
        weight_bits=weight_bits,
        placement=placement,
    )
    calibrate(network, [images], "min_max", 1.0)
    return network


def rough_file(
    model: TorchModel, images: Tensor, *, int8: bool, placement: Placement = "layers", skip: Sequence[str] = ()
) -> bytes:
    """The ONNX file of a float network, as it is or with integers."""
    network = roughly_quantized(model, images, placement=placement, skip=skip) if int8 else model.network
    return export_onnx(network, model.preprocess, {})


def timed_against(baseline: bytes, contents: Sequence[bytes]) -> list[Latency]:
    """How long each ONNX file takes on one thread, for one image, in alternation with the baseline's."""
    with TemporaryDirectory() as folder:
        reference, *subjects = (
            _written(Path(folder, f"{index}.onnx"), content) for index, content in enumerate([baseline, *contents])
        )
        return in_sessions([Pair(subject, reference, SETTING) for subject in subjects])


def _written(path: Path, content: bytes) -> Subject:
    path.write_bytes(content)
    return Subject(path)
