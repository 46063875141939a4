"""Networks as graphs of operators, and the layer in which a forward pass fails."""

import io
import logging
import operator
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TypeGuard

import torch
from torch import fx, nn
from torch._ops import HigherOrderOperator, OpOverload
from torch.export import ExportedProgram

from compressor.errors import ArchitectureError, first_line, pass_on_out_of_memory

TORCH = Path(torch.__file__).parent
aten = torch.ops.aten
NEW = {  # made of others, and always a new tensor
    aten.adaptive_avg_pool2d, aten.batch_norm, aten.conv1d, aten.conv2d, aten.group_norm, aten.layer_norm, aten.linear,
    aten.matmul, aten.max_pool2d, aten.scaled_dot_product_attention, aten.softmax,
}  # fmt: skip
CONVERSIONS = {aten.to, aten._to_copy, aten.type_as}
READ = NEW | CONVERSIONS | {  # by all who read graphs
    aten.chunk, aten.contiguous, aten.dropout, aten.einsum, aten.flatten, aten.pad, aten.reshape, aten.sym_size,
    aten.unflatten, aten.upsample_bilinear2d,
}  # fmt: skip
CLAMPS = {aten.clamp.default, aten.clamp_.default, aten.clip.default, aten.clip_.default}
LOGGERS = ("torch", "torch.onnx", "onnxscript", "onnx_ir")


def trace(network: nn.Module, input_shape: Sequence[int]) -> ExportedProgram:
    """The graph of `network` in eval mode, for any batch size.

    Args:
        network: `[N, C, H, W] -> [N, classes]`, on the CPU.
        input_shape: `(N, C, H, W)` of an example, N at least 2.

    Raises:
        ArchitectureError: it cannot be traced; the message names the layer and the reason.
    """
    try:
        return _exported(network, input_shape)
    except Exception as error:  # the exporter raises whatever the network's code and its own passes raise
        pass_on_out_of_memory(error)
        reason = f"{first_line(error)}{_line_in_words(network, error)}"
    with running_layers(network) as running:
        try:
            return _exported(network, input_shape)
        except Exception as error:
            pass_on_out_of_memory(error)
            where = layer_in_words(network, running)
            raise ArchitectureError(f"{where} cannot be traced by torch.export: {reason}") from error


def functional_graph(network: nn.Module, input_shape: Sequence[int]) -> fx.GraphModule:
    """`trace`, in operators none of which writes to its input; parameters and buffers keep their names.

    Raises:
        ArchitectureError: as `trace`.
    """
    program = trace(network, input_shape)
    for node in program.graph.nodes:
        _write_elsewhere(node)
    if not all(_is_plain(node) for node in program.graph.nodes):
        program = program.run_decompositions({})  # takes longer than the trace
    graph_module: fx.GraphModule = program.module(check_guards=False)
    for node in list(graph_module.graph.nodes):
        _as_decomposed(node)
        _without_effect(node)
    return graph_module


def _is_plain(node: fx.Node) -> bool:
    """Whether torch's decompositions would leave a node as it is, or as something that we read as well."""
    target = node.target
    if not isinstance(target, OpOverload):
        return not isinstance(target, HigherOrderOperator)
    if target is aten.batch_norm.default and node.args[5]:  # in training, it writes statistics
        return False
    return not _writes(target) and (not _is_composite(target) or target.overloadpacket in READ)


def _writes(target: object) -> TypeGuard[OpOverload]:
    """Whether an operator writes to its input."""
    return isinstance(target, OpOverload) and target._schema.is_mutable


def _is_composite(target: OpOverload) -> bool:
    """Whether an operator is made of others, one of which may return its input although the schema does not say so."""
    return bool(target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd))


def _write_elsewhere(node: fx.Node) -> None:
    """Let an operator that writes to an input of which nobody else knows make a new tensor.

    torch would do so too, and more besides, but takes 0.1 s for each ReLU6.
    """
    if not _writes(node.target):
        return
    written = node.args[0]
    safe = isinstance(written, fx.Node) and len(written.users) == 1 and _makes_new_tensors(written)
    safe |= node.target is aten.dropout_.default and not node.args[2]  # not in training: it writes nothing
    packet = getattr(aten, node.target._opname.removesuffix("_"), None)
    elsewhere = getattr(packet, node.target._overloadname, None)
    if safe and isinstance(elsewhere, OpOverload):
        node.target = elsewhere


def _makes_new_tensors(node: fx.Node) -> bool:
    """Whether what an operator outputs shares no memory with anything before it."""
    target = node.target
    if not isinstance(target, OpOverload) or any(made.alias_info is not None for made in target._schema.returns):
        return False
    return not _is_composite(target) or target.overloadpacket in NEW


def _as_decomposed(node: fx.Node) -> None:
    """Write a BatchNorm with statistics as torch's decompositions do, so that there is one way to write it."""
    if node.target is not aten.batch_norm.default:
        return
    *given, _, momentum, eps, _ = node.args
    with node.graph.inserting_before(node):
        norm = node.graph.call_function(aten._native_batch_norm_legit_no_training.default, (*given, momentum, eps))
        output = node.graph.call_function(operator.getitem, (norm, 0))
    norm.meta, output.meta = {**node.meta, "val": (node.meta["val"],)}, dict(node.meta)
    node.replace_all_uses_with(output)
    node.graph.erase_node(node)


def _without_effect(node: fx.Node) -> None:
    """Leave out a conversion to the type, device and strides that a tensor has (`x.float()`), and assertions."""
    if node.target is aten._assert_tensor_metadata.default:
        node.graph.erase_node(node)
    elif isinstance(node.target, OpOverload) and node.target.overloadpacket in CONVERSIONS:
        given = node.all_input_nodes[0]
        before, after = given.meta["val"], node.meta["val"]
        kept = all(getattr(before, own) == getattr(after, own) for own in ("dtype", "device", "layout"))
        if kept and before.stride() == after.stride():  # a view behind it may rely on `memory_format`
            node.replace_all_uses_with(given)
            node.graph.erase_node(node)


@contextmanager
def running_layers(network: nn.Module) -> Iterator[list[str]]:
    """The names of the layers whose forward is running, outermost first; after an exception, those it arose in."""
    running: list[str] = []

    def enter(name: str) -> None:
        running.append(name)

    def leave() -> None:
        running.pop()

    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: enter(name)))
        handles.append(module.register_forward_hook(lambda *_: leave()))
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


def layer_in_words(network: nn.Module, running: Sequence[str]) -> str:
    """The innermost of the running layers."""
    name = running[-1] if running else ""
    kind = type(network.get_submodule(name)).__name__
    return f"layer {name!r} ({kind})" if name else f"the network itself ({kind})"


def _line_in_words(network: nn.Module, error: Exception) -> str:
    """The innermost line of the network's own source in an error's traceback; empty if there is none."""
    modules = (sys.modules.get(type(module).__module__) for module in network.modules())
    files = {file for module in modules if (file := getattr(module, "__file__", None))}
    own = {file for file in files if not Path(file).is_relative_to(TORCH)}
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in own]
    return f", at {Path(lines[-1].filename).name}:{lines[-1].lineno}: `{lines[-1].line}`" if lines else ""


def layer_of(node: fx.Node) -> str:
    """The layer whose forward a graph's node comes from, as `layer1.0.conv1`; empty for the network itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return list(stack.values())[-1][0] if stack else ""


def inside(path: str, name: str) -> bool:
    """Whether a layer or tensor is the one of that name, or in the module of that name."""
    return path == name or path.startswith(f"{name}.")


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress what exporters warn, log and print; what they raise is reported by us."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _exported(network: nn.Module, input_shape: Sequence[int]) -> ExportedProgram:
    with quiet():
        program = torch.export.export(
            network, (torch.zeros(*input_shape),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
        )
    for node in program.graph.nodes:
        _with_ends_alike(node)
    return program


def _with_ends_alike(node: fx.Node) -> None:
    """Write `x.clamp(0, 1.0)` as `x.clamp(0.0, 1.0)`: ONNX's exporter has no clamp from a whole number to another."""
    if node.target in CLAMPS and any(isinstance(end, float) for end in node.args[1:]):
        node.args = tuple(float(each) if isinstance(each, int) else each for each in node.args)
