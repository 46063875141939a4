"""Which channels depend on one another: the traced network runs on names instead of numbers.

A convolution gives each of its output channels the name of the slice of its weight that makes it; reshaping moves names
around as it moves numbers; and wherever two names meet (in an addition, a norm, the input of the next layer), their
slices can only be removed together. So groups are known channel by channel, through any shuffle or window.

Groups of dependent layers are DepGraph's idea (Fang et al. 2023), which maps positions between layers instead.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from compressor.pruning.slices import FIXED, Kept, Names, Shapes, Slices
from compressor.tracing import functional_graph

aten = torch.ops.aten

UNTAGGED = {aten.dropout, aten.feature_dropout, aten.hardswish, aten.relu6, aten.to}  # pointwise, untold by torch
REARRANGING = {
    aten.alias, aten.contiguous, aten.detach, aten.expand, aten.lift_fresh_copy, aten.movedim, aten.permute,
    aten.squeeze, aten.t, aten.transpose, aten.unsqueeze,
}  # fmt: skip
RESHAPING = {aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten}
PARTS = {aten.chunk, aten.split, aten.split_with_sizes, aten.tensor_split}
PICKING = {aten.flip, aten.roll, aten.select, aten.slice, aten.unbind}
POOLING = {
    aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_max_pool2d, aten.avg_pool1d, aten.avg_pool2d,
    aten.max_pool1d, aten.max_pool2d, aten.max_pool2d_with_indices, aten.upsample_bicubic2d, aten.upsample_bilinear2d,
    aten.upsample_nearest2d,
}  # fmt: skip
AVERAGES = {aten.mean, aten.var, aten.std, aten.linalg_vector_norm}  # over fewer channels they mean the same
SUMS = {aten.sum, aten.amax, aten.amin}
SIZES = {aten.sym_size, aten.new_zeros, aten.new_ones, aten.new_full, aten.zeros_like, aten.ones_like, aten.full_like}


def name_channels(
    network: nn.Module, input_shape: tuple[int, int, int, int], shapes: Shapes, kept: Kept | None = None
) -> Slices:
    """Which slices of a network's tensors can only be removed together.

    Args:
        network: in eval mode.
        input_shape: `(N, C, H, W)` of an example, N at least 2.
        shapes: of the parameters and buffers at first.
        kept: the indices that are left, if channels were removed since.

    Raises:
        ArchitectureError: the network cannot be traced.
    """
    slices = Slices(shapes, kept)
    with torch.no_grad():
        _Naming(functional_graph(network, input_shape), slices, shapes).run(torch.zeros(input_shape))
    return slices


class _Naming(fx.Interpreter):
    """Runs a graph on `Names`; what depends on none of them (masks, positions) runs as it is."""

    def __init__(self, graph_module: fx.GraphModule, slices: Slices, shapes: Shapes) -> None:
        super().__init__(graph_module)
        self.slices, self.shapes = slices, shapes

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "placeholder":
            return _blank(super().run_node(n).shape)
        if n.op == "get_attr" and n.target in self.shapes:
            return self._parameter(str(n.target))
        given = self.fetch_args_kwargs_from_env(n)
        if not any(isinstance(leaf, Names) for leaf in _leaves(given)):
            return super().run_node(n)
        args, kwargs = given
        if n.op == "output":
            self._fix(args)
            return None
        packet = getattr(n.target, "overloadpacket", None)
        if packet is None:  # getitem, of several outputs
            return n.target(*args)  # type: ignore[operator]
        bound = {
            each.name: args[index] if index < len(args) else kwargs.get(each.name, each.default_value)
            for index, each in enumerate(n.target._schema.arguments)  # type: ignore[union-attr]
        }
        rule = self._rule(n.target, packet)
        if rule is None:
            self._fix(given)
            return pytree.tree_map(lambda out: _blank(out.shape), _numbers(n.target, args, kwargs))
        return rule(n, bound)

    def _rule(self, operator: Any, packet: Any) -> Callable[[fx.Node, Mapping[str, Any]], Any] | None:
        if torch.Tag.pointwise in operator.tags or packet in UNTAGGED:
            return self._pointwise
        if packet in SIZES:
            return lambda node, given: _numbers(
                node.target, (given["self"],), {k: v for k, v in given.items() if k != "self"}
            )
        for packets, rule in (
            ({aten.linear}, self._linear),
            ({aten.conv1d, aten.conv2d}, self._convolution),
            ({aten._native_batch_norm_legit_no_training, aten.prelu}, self._by_channel),
            ({aten.layer_norm, aten.rms_norm}, self._layer_norm),
            ({aten.group_norm}, self._group_norm),
            (REARRANGING, self._rearranged),
            (RESHAPING, self._reshaped),
            (PARTS, self._parts),
            (PICKING, self._picked),
            ({aten.cat, aten.stack}, self._concatenated),
            ({aten.index}, self._indexed),
            ({aten.pad, aten.constant_pad_nd}, self._padded),
            (POOLING, self._pooled),
            (AVERAGES | SUMS, self._reduced),
            ({aten.softmax, aten._softmax, aten.log_softmax}, self._softmax),
            ({aten.matmul, aten.mm, aten.bmm}, self._matmul),
            ({aten.scaled_dot_product_attention}, self._attention),
        ):
            if packet in packets:
                return rule
        return None

    # Layers

    def _linear(self, node: fx.Node, given: Mapping[str, Any]) -> Names:
        x, weight = self._one(given["input"]), self._weight(node)
        out = (*x.shape[:-1], given["weight"].shape[0])
        if weight is None:
            self._fix(list(given.values()))
            return _blank(out)
        rows, columns = self.slices.of(weight, 0), self.slices.of(weight, 1)
        self.slices.join(x, columns)
        self._join_bias(given["bias"], rows)
        return Names((rows.expand(out),))

    def _convolution(self, node: fx.Node, given: Mapping[str, Any]) -> Names:
        x, weight, groups = self._one(given["input"]), self._weight(node), given["groups"]
        spatial = node.meta["val"].shape[2:]
        out = (len(x), given["weight"].shape[0], *spatial)
        if (
            weight is None
            or x.dim() != given["weight"].alternatives[0].dim()
            or any(d > 1 for d in self.slices.varying(x))
        ):
            self._fix(list(given.values()))
            return _blank(out)
        rows, columns = self.slices.of(weight, 0), self.slices.of(weight, 1)
        by_group = rows.view(groups, -1)  # [G, out / G]
        x = x.flatten(2)[..., 0].unflatten(1, (groups, -1))  # [N, G, in / G]
        if groups > 1 and len(columns) == 1:  # depthwise: a channel goes with its group
            self.slices.join(x[..., 0], by_group[:, 0])
            self.slices.join(by_group, by_group[:, :1])
        else:
            self.slices.join(x, columns)
            self.slices.join(by_group, by_group[:1])  # groups stay equal
        self._join_bias(given["bias"], rows)
        return Names((rows.view(-1, *(1 for _ in spatial)).expand(out),))

    def _by_channel(self, node: fx.Node, given: Mapping[str, Any]) -> Any:
        """BatchNorm and PReLU."""
        x, *others = given.values()
        x = self._one(x)
        self._join_channels(x, *(each for each in others if isinstance(each, Names | Tensor) and each.shape != (1,)))
        named = Names((x,))
        return (named, None, None) if isinstance(node.meta["val"], tuple | list) else named

    def _layer_norm(self, node: fx.Node, given: Mapping[str, Any]) -> Names:
        x = self._one(given["input"])
        if len(given["normalized_shape"]) > 1:
            self._fix(list(given.values()))
        for each in (given["weight"], given.get("bias")):
            if each is not None:
                self.slices.join(x, self._one(each))
        return Names((x,))

    def _group_norm(self, node: fx.Node, given: Mapping[str, Any]) -> Names:
        x = self._one(given["input"])
        by_group = x.unflatten(1, (given["num_groups"], -1))
        self.slices.join(by_group, by_group[:, :1])  # groups stay equal
        self._join_channels(x, *(each for each in (given["weight"], given["bias"]) if each is not None))
        return Names((x,))

    def _attention(self, node: fx.Node, given: Mapping[str, Any]) -> Names:
        query, key, value = (self._one(given[name]) for name in ("query", "key", "value"))
        self._fix(given["attn_mask"])
        weights = self._product(query, key.transpose(-2, -1))
        return Names((self._product(weights, value),))

    def _matmul(self, node: fx.Node, given: Mapping[str, Any]) -> Names:
        a, b = (self._one(each) for each in given.values())
        if min(a.dim(), b.dim()) < 2:
            self._fix(list(given.values()))
            return _blank(_numbers(node.target, tuple(given.values()), {}).shape)
        return Names((self._product(a, b),))

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        """The names of `a @ b`: those along the dimension that is summed over meet."""
        rows, columns = self.slices.varying(a), self.slices.varying(b)
        left, right = a.dim() - 2 in rows, b.dim() - 1 in columns
        summed = a.dim() - 1 in rows or b.dim() - 2 in columns
        shape = (*torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
        if left + right + summed > 1:
            self.slices.fix(a)
            self.slices.fix(b)
        elif summed:
            self.slices.join(a[..., :1, :].transpose(-2, -1), b[..., :1])
        elif right:
            self.slices.fix(a)
            return b[..., :1, :].expand(shape)
        elif left:
            self.slices.fix(b)
            return a[..., :1].expand(shape)
        else:
            self.slices.fix(a)
            self.slices.fix(b)
        return _blank(shape).alternatives[0]

    # What moves or compares elements

    def _pointwise(self, node: fx.Node, given: Mapping[str, Any]) -> Names:
        first, *others = [each for each in _leaves(given) if isinstance(each, Names | Tensor)]
        for other in others:
            first = self._met(first, other)
        return first if isinstance(first, Names) else _blank(first.shape)

    def _met(self, a: Any, b: Any) -> Names:
        """Two tensors that are broadcast meet, element by element."""
        a, b = self._one(a, like=b), self._one(b, like=a)
        shape = torch.broadcast_shapes(a.shape, b.shape)
        a, b = (each.reshape(*(1 for _ in range(len(shape) - each.dim())), *each.shape) for each in (a, b))
        for own, other in ((a, b), (b, a)):
            varying = self.slices.varying(own)
            if varying and all(other.shape[dim] == 1 for dim in varying):  # one number for all channels
                self.slices.fix(other)
                return Names((own.expand(shape),))
        self.slices.join(a, b)
        return Names((torch.where(a == FIXED, b, a).expand(shape),))

    def _rearranged(self, node: fx.Node, given: Mapping[str, Any]) -> Names:
        return Names(tuple(_applied(node, given, names) for names in given["self"].alternatives))

    def _reshaped(self, node: fx.Node, given: Mapping[str, Any]) -> Names:
        shape = given.get("size", given.get("shape"))  # of views, which names may lie too oddly for
        after = self._rearranged(node, given) if shape is None else given["self"].reshaped(shape)
        for names in after.alternatives:
            for block in _split_dims(given["self"].shape, names.shape):
                *outer, _ = [dim for dim in self.slices.varying(names) if dim in block] or [0]
                for dim in outer:  # the number of parts is written into the network, so these stay equal
                    self.slices.join(names, names.narrow(dim, 0, 1))
        return after

    def _parts(self, node: fx.Node, given: Mapping[str, Any]) -> Any:
        parts = [_applied(node, given, names) for names in given["self"].alternatives]
        for names, (first, *others) in zip(given["self"].alternatives, parts, strict=True):
            if given["dim"] % names.dim() in self.slices.varying(names):
                for other in others:
                    if other.shape != first.shape:
                        self.slices.fix(names)
                    else:
                        self.slices.join(first, other)  # parts stay equal
        return tuple(Names(part) for part in zip(*parts, strict=True))

    def _picked(self, node: fx.Node, given: Mapping[str, Any]) -> Any:
        dims = given["dims"] if "dims" in given else [given["dim"]]
        picked = []
        for names in given["self"].alternatives:
            after = _applied(node, given, names)
            whole = isinstance(after, Tensor) and after.shape == names.shape and node.target is aten.slice.Tensor
            if not whole and any(dim % names.dim() in self.slices.varying(names) for dim in dims):
                self.slices.fix(names)
            picked.append(after)
        if isinstance(picked[0], Tensor):
            return Names(tuple(picked))
        return tuple(Names(each) for each in zip(*picked, strict=True))

    def _concatenated(self, node: fx.Node, given: Mapping[str, Any]) -> Names:
        whole = next(
            (each for each in given["tensors"] if isinstance(each, Names) and len(each.alternatives) == 1), None
        )
        parts = [self._one(each, like=whole) for each in given["tensors"]]
        if node.target is aten.stack.default:
            parts = [part.unsqueeze(given["dim"]) for part in parts]
        dim = given["dim"] % parts[0].dim()
        if not any(dim in self.slices.varying(part) for part in parts):  # the same channels in all of them
            for part in parts[1:]:
                self.slices.join(part.narrow(dim, 0, 1), parts[0].narrow(dim, 0, 1))
        return Names((torch.cat(parts, dim),))

    def _indexed(self, node: fx.Node, given: Mapping[str, Any]) -> Names:
        if any(isinstance(each, Names) for each in given["indices"]):
            self._fix(given)
            return _blank(_numbers(node.target, tuple(given.values()), {}).shape)
        dims = [dim for dim, each in enumerate(given["indices"]) if each is not None]
        for names in given["self"].alternatives:
            if set(dims) & set(self.slices.varying(names)):
                self.slices.fix(names)
        return self._rearranged(node, given)

    def _padded(self, node: fx.Node, given: Mapping[str, Any]) -> Names:
        names = self._one(given["self"])
        for number, (before, after) in enumerate(zip(given["pad"][::2], given["pad"][1::2], strict=True), 1):
            dim = names.dim() - number
            if (before or after) and dim in self.slices.varying(names):
                self.slices.fix(names)
            indices = torch.arange(-before, names.shape[dim] + after).clamp(0, names.shape[dim] - 1)
            names = names.index_select(dim, indices)
        return Names((names,))

    def _pooled(self, node: fx.Node, given: Mapping[str, Any]) -> Any:
        names = self._one(next(iter(given.values())))
        several = isinstance(node.meta["val"], tuple | list)
        spatial = 1 if "1d" in str(node.target) else 2
        shape = (*names.shape[:-spatial], *(node.meta["val"][0] if several else node.meta["val"]).shape[-spatial:])
        if any(dim >= names.dim() - spatial for dim in self.slices.varying(names)):
            self.slices.fix(names)
            pooled = _blank(shape)
        else:
            pooled = Names((names.flatten(-spatial)[..., 0].reshape(*shape[:-spatial], *(1,) * spatial).expand(shape),))
        return (pooled, None) if several else pooled

    def _reduced(self, node: fx.Node, given: Mapping[str, Any]) -> Names:
        names = self._one(given["self"])
        given_dims = given.get("dim")
        dims = [given_dims] if isinstance(given_dims, int) else given_dims or range(names.dim())
        dims = [dim % names.dim() for dim in dims]
        reduced = names.amin(dims, keepdim=given.get("keepdim", False))
        if not set(dims) & set(self.slices.varying(names)):
            return Names((reduced,))
        if node.target.overloadpacket in SUMS:  # type: ignore[union-attr]
            self.slices.fix(names)
        return _blank(reduced.shape)

    def _softmax(self, node: fx.Node, given: Mapping[str, Any]) -> Names:
        names = self._one(given["self"])
        if given["dim"] % names.dim() in self.slices.varying(names):
            self.slices.fix(names)
        return Names((names,))

    # Names

    def _parameter(self, name: str) -> Names:
        shape = self.fetch_attr(name).shape
        along = [self.slices.of(name, dim).view(-1, *(1 for _ in shape[dim + 1 :])) for dim in range(len(shape))]
        return Names(tuple(names.expand(shape) for names in along)) if shape else _blank(shape)

    def _weight(self, node: fx.Node) -> str | None:
        """The name of a layer's weight, if it is a parameter as it is."""
        weight = node.args[1]
        own = isinstance(weight, fx.Node) and weight.op == "get_attr" and weight.target in self.shapes
        return str(weight.target) if own else None  # type: ignore[union-attr]

    def _join_channels(self, x: Tensor, *by_channel: Any) -> None:
        """Tensors `[C]` meet the channels of `[N, C, ...]`."""
        for each in by_channel:
            self.slices.join(x, self._one(each).view(-1, *(1 for _ in x.shape[2:])))

    def _join_bias(self, bias: Any, rows: Tensor) -> None:
        if bias is not None:
            self.slices.join(self._one(bias), rows)

    def _one(self, value: Any, like: Any = None) -> Tensor:
        """The names in a tensor; of a parameter's alternatives the one along dimensions in which `like` varies."""
        if isinstance(value, Tensor):
            return _blank(value.shape).alternatives[0]
        alternatives: Sequence[Tensor] = value.alternatives
        if len(alternatives) > 1 and isinstance(like, Names) and len(like.alternatives) == 1:
            there = {dim - len(like.shape) for dim in self.slices.varying(like.alternatives[0])}
            for names in alternatives:
                own = {dim - names.dim() for dim in self.slices.varying(names)}
                if own and own <= there:
                    return names
        return alternatives[-1]

    def _fix(self, given: Any) -> None:
        for leaf in _leaves(given):
            if isinstance(leaf, Names):
                for names in leaf.alternatives:
                    self.slices.fix(names)


def _blank(shape: Sequence[int]) -> Names:
    return Names((torch.full((), FIXED).expand(shape),))


def _leaves(given: Any) -> list[Any]:
    return pytree.tree_leaves(given, is_leaf=lambda leaf: isinstance(leaf, Names))


def _numbers(operator: Any, args: Any, kwargs: Any) -> Any:
    """What an operator gives for zeros in the place of names."""
    args, kwargs = pytree.tree_map(
        lambda leaf: torch.zeros(leaf.shape) if isinstance(leaf, Names) else leaf,
        (args, kwargs),
        is_leaf=lambda leaf: isinstance(leaf, Names),
    )
    return operator(*args, **kwargs)


def _applied(node: fx.Node, given: Mapping[str, Any], names: Tensor) -> Any:
    """The operator of a node, on names in the place of its first argument."""
    own, *others = given.items()
    return node.target(**{own[0]: names}, **dict(others))  # type: ignore[operator]


def _split_dims(before: Sequence[int], after: Sequence[int]) -> list[range]:
    """The dimensions of the shape `after` that lie together in dimensions of `before`, where they are not the same."""
    blocks, i, j = [], 0, 0
    while j < len(after):
        first, left, right = (i, j), before[i] if i < len(before) else 1, after[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        if (i - first[0], j - first[1]) != (1, 1):
            blocks.append(range(first[1], j))
    return blocks
