"""What stages hand on: a torch network or an ONNX file. Saved without pickle, loaded to bit-equal outputs."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from compressor.data.preprocess import Preprocess
from compressor.errors import ArtifactError, UserError, first_line, pass_on_out_of_memory
from compressor.export import onnx_file, reading
from compressor.models.allocation import at_most
from compressor.models.architectures import Architecture, check_weights_are_parameters
from compressor.models.changes import Change, Int8, Masked
from compressor.models.manifest import MANIFEST, Counts, OnnxManifest, TorchManifest, read_manifest
from compressor.models.weights import load_weights
from compressor.quantization.network import QuantizedNetwork
from compressor.storage import files, tensors

WEIGHTS = "weights.safetensors"
ONNX = "model.onnx"
PREDICT_BATCH = 250
MIN_BUILD_BYTES, MAX_BUILD_FACTOR = 2**26, 100  # what building a saved network may take, over the size of its weights
MULTIPLY_ADD_OPS = ("convolution", "mm", "addmm", "bmm", "baddbmm")


@dataclass(frozen=True)
class TorchModel:
    """A network with all that is needed to build, feed and read it. Stages copy it; they never write to it.

    Attributes:
        network: `[N, C, H, W] -> [N, classes]`, in eval mode, on the CPU.
        architecture: what builds the network, before `changes`.
        changes: structural changes in the order they were made.
        details: JSON that a stage has to say of its result (training curves, widths), for the report.
        frozen: names of parameters that no training changes: those that the architecture builds with
            `requires_grad=False`.
    """

    network: nn.Module
    architecture: Architecture
    preprocess: Preprocess
    labels: tuple[str, ...]
    changes: tuple[Change, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()

    @classmethod
    def of_new(
        cls,
        network: nn.Module,
        architecture: Architecture,
        preprocess: Preprocess,
        labels: tuple[str, ...],
        changes: tuple[Change, ...] = (),
        details: Mapping[str, Any] | None = None,
    ) -> "TorchModel":
        """A network as its architecture builds it: parameters that it does not want trained are `frozen`."""
        frozen = frozenset(name for name, each in network.named_parameters() if not each.requires_grad)
        return cls(network, architecture, preprocess, labels, changes, details or {}, frozen)

    def __post_init__(self) -> None:
        check_weights_are_parameters(self.network)
        network = copy.deepcopy(self.network)  # the caller's own stays as it is
        _normalise(network)
        object.__setattr__(self, "network", network)

    @property
    def quantized(self) -> bool:
        """Whether the network fakes integers."""
        return any(isinstance(change, Int8) for change in self.changes)

    @property
    def masked(self) -> frozenset[str]:
        """The parameters whose zeros stay zero in training."""
        return frozenset(name for change in self.changes if isinstance(change, Masked) for name in change.parameters)

    @cached_property
    def classifier(self) -> frozenset[str]:
        """The layers whose shape depends on the number of classes; empty if that cannot be told."""
        return self.architecture.classifier(factories=self._factories)

    @property
    def _factories(self) -> frozenset[str]:
        factory = self.architecture.factory
        return frozenset() if factory is None else frozenset({factory})

    @cached_property
    def counts(self) -> Counts:
        """Parameters and multiply-adds of the network as it was before folding and quantizing."""
        network = _changed(
            _initial(self.architecture, self._factories),
            tuple(change for change in self.changes if not isinstance(change, Int8)),
            self.preprocess,
        )
        parameters = sum(parameter.numel() for parameter in network.parameters())
        zeros = sum(int((parameter == 0).sum()) for parameter in self.network.parameters())
        return Counts(
            parameters=parameters,
            nonzero_parameters=parameters - zeros,
            macs=count_macs(network, self.preprocess),
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all that decides what the network computes."""
        described = (self.architecture, *self.changes, self.preprocess)
        return files.digest_json(
            {
                "structure": [part.model_dump(mode="json") for part in described],
                "labels": self.labels,
                "weights": files.digest(safetensors.torch.save(dict(self.network.state_dict()))),
            }
        )

    def copy_network(self) -> nn.Module:
        """A copy of the network to train or change."""
        return copy.deepcopy(self.network)

    def with_network(self, network: nn.Module, *new_changes: Change, details: Mapping[str, Any]) -> "TorchModel":
        """This model with another network, changes added, and details of its own."""
        changes = (*self.changes, *new_changes)
        return replace(self, network=network, changes=changes, details=details)

    @torch.no_grad()
    def predict(self, inputs: Tensor) -> Tensor:
        """Logits `[N, classes]` for normalised images `[N, C, H, W]`, in float32 on the CPU, in batches."""
        return torch.cat([self.network(batch) for batch in inputs.split(PREDICT_BATCH)])

    def for_engine(self, engine: str) -> "TorchModel":
        """This network on the grids that an engine reads: TensorRT's are symmetric, all others read those it has."""
        if not (self.quantized and engine in onnx_file.SIGNED):
            return self
        changes = tuple(change.symmetric() if isinstance(change, Int8) else change for change in self.changes)
        network = self.copy_network()
        assert isinstance(network, QuantizedNetwork)
        network.set_ranges(next(change.activations for change in changes if isinstance(change, Int8)))
        return replace(self, network=network, changes=changes)

    def to_onnx(
        self, pipeline_digest: str, opset: int = onnx_file.DEFAULT_OPSET, *, signed: bool = False
    ) -> "OnnxModel":
        """The file this model would ship as; exported once, which takes seconds.

        Args:
            pipeline_digest: of the pipeline, for its metadata.
            opset: the version of ONNX's operators.
            signed: activations are in int8; for networks on symmetric grids, as `for_engine` gives them.
        """
        key = pipeline_digest, opset, signed
        if key not in self._exported:
            bits = next((change.weight_bits for change in self.changes if isinstance(change, Int8)), None)
            metadata = onnx_file.metadata_of(self.preprocess, self.labels, pipeline_digest, bits, signed=signed)
            content = onnx_file.export_onnx(self.network, self.preprocess, metadata, opset, signed=signed)
            self._exported[key] = OnnxModel(content, self.preprocess, self.labels, self.counts, self.quantized)
        return self._exported[key]

    @cached_property
    def _exported(self) -> "dict[tuple[str, int, bool], OnnxModel]":
        return {}

    def save(self, folder: Path) -> None:
        """Write `manifest.json` and `weights.safetensors` into `folder`."""
        weights = safetensors.torch.save(dict(self.network.state_dict()))
        manifest = TorchManifest(
            architecture=self.architecture,
            changes=self.changes,
            preprocess=self.preprocess,
            labels=self.labels,
            versions={"torch": str(torch.__version__)},
            digest=files.digest(weights),
            details=dict(self.details),
        )
        files.write_bytes(folder / WEIGHTS, weights)
        files.write_text(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")


@dataclass(frozen=True)
class OnnxModel:
    """An ONNX file, with the counts of the network it came from; `own_files` are for engines that cannot read it.

    `engines` lists what it was made for, ONNX Runtime aside. Whoever changes `content` changes or empties both.
    """

    content: bytes = field(repr=False)
    preprocess: Preprocess
    labels: tuple[str, ...]
    counts: Counts
    quantized: bool
    details: Mapping[str, Any] = field(default_factory=dict)
    engines: tuple[str, ...] = ()
    own_files: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @cached_property
    def _session(self) -> Any:
        return onnx_file.session(self.content, threads=torch.get_num_threads())

    def predict(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits `[N, classes]` for normalised images `[N, C, H, W]`, by ONNX Runtime, in batches."""
        batches = (inputs[start : start + PREDICT_BATCH] for start in range(0, len(inputs), PREDICT_BATCH))
        return np.concatenate([onnx_file.logits_of(self._session, batch) for batch in batches])

    @property
    def digest(self) -> str:
        """SHA-256 of the file; with files of engines, over all."""
        if not self.own_files:
            return files.digest(self.content)
        own = {engine: files.digest(content) for engine, content in self.own_files.items()}
        return files.digest_json([files.digest(self.content), own])

    def for_engines(
        self, engines: tuple[str, ...], own_files: Mapping[str, bytes], *, details: Mapping[str, Any]
    ) -> "OnnxModel":
        """This file with those of other engines, and details for the report."""
        return replace(self, engines=engines, own_files=own_files, details=details)

    def save(self, folder: Path) -> None:
        """Write `manifest.json` and `model.onnx` into `folder`."""
        manifest = OnnxManifest(
            preprocess=self.preprocess,
            labels=self.labels,
            versions={"torch": str(torch.__version__)},
            digest=files.digest(self.content),
            counts=self.counts,
            quantized=self.quantized,
            details=dict(self.details),
            engines=self.engines,
            own_files={engine: files.digest(content) for engine, content in self.own_files.items()},
        )
        files.write_bytes(folder / ONNX, self.content)
        for engine, content in self.own_files.items():
            files.write_bytes(folder / file_for(engine), content)
        files.write_text(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")


Artifact = TorchModel | OnnxModel


def file_for(engine: str) -> str:
    """The name of the file for an engine that needs its own."""
    return f"model.{engine}.onnx"


def load(folder: Path, *, factories: frozenset[str] = frozenset()) -> Artifact:
    """The artifact saved in `folder`: build, replay the changes, load the weights strictly.

    Args:
        folder: where `save` wrote it.
        factories: the factories of one's own that may be imported to build it.

    Raises:
        ArtifactError: something is missing, damaged or does not fit.
        ArchitectureError: the manifest names a factory that is not in `factories`.
    """
    manifest = read_manifest(folder)
    path = folder / (WEIGHTS if manifest.kind == "torch" else ONNX)
    content = _content_of(path, manifest.digest)
    if isinstance(manifest, OnnxManifest):
        named = {str(engine): (folder / file_for(engine), each) for engine, each in manifest.own_files.items()}
        own_files: dict[str, bytes] = {engine: _content_of(*each) for engine, each in named.items()}
        for source, each in ((path, content), *((named[engine][0], own_files[engine]) for engine in named)):
            parsed = reading.parse(each, source=source)
            reading.check_interface(parsed, manifest.preprocess, manifest.labels, source=source)
        return OnnxModel(
            content,
            manifest.preprocess,
            manifest.labels,
            manifest.counts,
            manifest.quantized,
            manifest.details,
            manifest.engines,
            own_files,
        )
    weights = tensors.parse(content, source=path)
    with at_most(MIN_BUILD_BYTES + MAX_BUILD_FACTOR * len(content), f"{path} holds {len(content):,} bytes"):
        network = _initial(manifest.architecture, factories)
    try:
        network = _changed(network, manifest.changes, manifest.preprocess)
    except UserError:
        raise
    except Exception as error:  # torch raises many types where changes fit the layers, but not one another
        pass_on_out_of_memory(error)
        raise ArtifactError(f"{folder / MANIFEST}: its changes do not fit the network: {first_line(error)}") from error
    load_weights(network, weights, source=str(path))
    kinds = {name: tensor.dtype for name, tensor in network.state_dict().items()}
    if odd := [name for name, tensor in weights.items() if tensor.dtype != kinds[name]]:
        raise ArtifactError(f"{path}: {odd[0]} is {weights[odd[0]].dtype}, the network needs {kinds[odd[0]]}")
    return TorchModel.of_new(
        network,
        manifest.architecture,
        manifest.preprocess,
        manifest.labels,
        manifest.changes,
        manifest.details,
    )


def _content_of(path: Path, digest: str) -> bytes:
    """What is in a file of an artifact, if it has the digest that the manifest names."""
    try:
        content = files.read_bytes(path)
    except OSError as error:
        raise ArtifactError(f"{path.parent} holds no readable artifact: {error.strerror}: {error.filename}") from error
    if files.digest(content) != digest:
        raise ArtifactError(f"{path.parent}: the file does not have the digest that its manifest names; it is damaged")
    return content


def count_macs(network: nn.Module, preprocess: Preprocess) -> int:
    """Multiply-adds of the convolutions and linear layers (matrix products) of `network` for one image.

    Attention counts with both of its products: the kernels that do all of it at once, which are not counted, are off.
    """
    counter = FlopCounterMode(display=False)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            network.eval()(torch.zeros(preprocess.input_shape(1)))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    flops = counter.get_flop_counts()["Global"]
    return sum(count for op, count in flops.items() if op.__name__.partition(".")[0] in MULTIPLY_ADD_OPS) // 2


def _initial(architecture: Architecture, factories: frozenset[str]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return architecture.build(factories=factories)


def _changed(network: nn.Module, changes: tuple[Change, ...], preprocess: Preprocess) -> nn.Module:
    trained = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    for change in changes:
        network = change.apply(network, preprocess.input_shape(2))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(trained.get(name, True))
    return network


def _normalise(network: nn.Module) -> None:
    """Eval mode, CPU, plain strides, no gradients: equal weights then give equal bits, saved and loaded or not."""
    network.cpu().eval().requires_grad_(False)
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.grad = None
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
