"""What a node of a program is: predicates that kinds choose their sites with."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from flowopt.ir.constants import is_parameter_only
from flowopt.ir.metadata import recorded_tensor

aten = torch.ops.aten
BATCH_NORM = aten._native_batch_norm_legit_no_training.default
ATTENTION = aten.scaled_dot_product_attention.default
_COMPUTING = {
    aten.linear.default,
    aten.conv2d.default,
    aten.layer_norm.default,
    aten.add.Tensor,
    aten.mul.Tensor,
    aten.relu.default,
    aten.gelu.default,
    aten.silu.default,
    aten.tanh.default,
    ATTENTION,
}

_BOUNDING = {
    aten.layer_norm.default,
    aten.rsqrt.default,
    aten.tanh.default,
    aten.softmax.int,
    aten.relu6.default,
    aten.hardtanh.default,
    ATTENTION,
}
_LAYERS = {aten.linear.default, aten.conv2d.default, ATTENTION}
_KEEPING_ZERO = {aten.relu.default, aten.gelu.default, aten.silu.default, aten.tanh.default}


def calls(*targets: Any, where: Callable[[fx.Node], bool] | None = None) -> Callable[[fx.Node], bool]:
    """Predicate: the node calls one of these operators, and ``where`` holds."""
    return lambda node: node.op == "call_function" and node.target in targets and (where is None or where(node))


def both(*conditions: Callable[[fx.Node], bool]) -> Callable[[fx.Node], bool]:
    """Predicate: all of them hold, tested in order."""
    return lambda node: all(condition(node) for condition in conditions)


def argument(node: fx.Node, position: int, default: Any = None) -> Any:
    """A positional argument, or the default where it is not written."""
    return node.args[position] if position < len(node.args) else default


def source(node: fx.Node, position: int = 0) -> fx.Node:
    """An argument that is a node."""
    found = node.args[position]
    assert isinstance(found, fx.Node)
    return found


def shape(node: Any) -> tuple[Any, ...]:
    """Recorded sizes; free ones are symbols. Empty for what is no tensor."""
    value = recorded_tensor(node) if isinstance(node, fx.Node) else None
    return () if value is None else tuple(value.shape)


def same_type(one: Any, other: Any) -> bool:
    """True for two tensors of one dtype and of sizes that are equal by name."""
    left, right = (recorded_tensor(n) if isinstance(n, fx.Node) else None for n in (one, other))
    return left is not None and right is not None and left.dtype == right.dtype and str(shape(one)) == str(shape(other))


def is_float(node: Any) -> bool:
    """True for a floating tensor."""
    value = recorded_tensor(node) if isinstance(node, fx.Node) else None
    return value is not None and value.is_floating_point()


def is_stored(node: Any) -> bool:
    """True for a tensor that depends on the model's weights alone."""
    return isinstance(node, fx.Node) and is_parameter_only(node)


def is_free(node: fx.Node, axis: int) -> bool:
    """True when the size along the axis is known at run time only."""
    sizes = shape(node)
    return -len(sizes) <= axis < len(sizes) and not isinstance(sizes[axis], int)


def is_activation(node: fx.Node) -> bool:
    """True for a computed floating tensor, batch first and features last: a place for mistakes that fit anywhere."""
    is_normed = node.target is operator.getitem and is_batch_normed(node)
    if not (is_normed or node.target in _COMPUTING) or not is_float(node) or len(shape(node)) < 2:
        return False
    batch = shape(next(n for n in node.graph.nodes if n.op == "placeholder"))[0]
    return is_free(node, 0) and str(shape(node)[0]) == str(batch) and shape(node)[-1] != 1


def is_large(node: fx.Node) -> bool:
    """True for an activation with more than a few numbers per sample."""
    return is_activation(node) and len(shape(node)) > 2


def is_unbounded(node: fx.Node) -> bool:
    """True for an activation before any norm and any clipping: it can be as large as one likes, and infinite."""
    pending, seen = [node], {node}
    while pending:
        current = pending.pop()
        if current.target in _BOUNDING:
            return False
        fresh = [n for n in current.all_input_nodes if n not in seen]
        seen.update(fresh)
        pending += fresh
    return is_activation(node)


def reaches_zero(node: fx.Node) -> bool:
    """True for an activation function, which is exactly zero, or constant along a row, where its input is."""
    return node.target in _KEEPING_ZERO and is_activation(node)


def takes_any_number(node: fx.Node) -> bool:
    """True for the output of a layer: a product or a norm, which can be any number, an infinity included."""
    return node.target in _LAYERS and is_activation(node)


def has_sequence(node: fx.Node) -> bool:
    """True for an activation of shape (batch, sequence, features) with both free."""
    return is_activation(node) and len(shape(node)) == 3 and is_free(node, 1)


def is_image(node: fx.Node) -> bool:
    """True for an activation of four axes with features second."""
    return is_activation(node) and len(shape(node)) == 4 and node.target is not ATTENTION


def is_batch_norm(node: fx.Node) -> bool:
    """True for a batch norm, whose value is a tuple."""
    return node.target is BATCH_NORM


def is_batch_normed(node: fx.Node) -> bool:
    """True for the first value of a batch norm, which is the only one that programs read."""
    return node.target is operator.getitem and is_batch_norm(source(node)) and bool(node.args[1] == 0)


def is_root_mean_square(node: fx.Node) -> bool:
    """rsqrt(mean(x ** 2) + eps)."""
    if node.target is not aten.rsqrt.default or source(node).target is not aten.add.Tensor:
        return False
    mean = source(source(node))
    return mean.target is aten.mean.dim and source(mean).target is aten.pow.Tensor_Scalar


def is_weighted(node: fx.Node) -> bool:
    """A linear layer or a convolution of stored weights."""
    return node.target in (aten.linear.default, aten.conv2d.default) and is_stored(node.args[1])


def has_bias(node: fx.Node) -> bool:
    """A weighted layer with a bias."""
    return is_weighted(node) and isinstance(argument(node, 2), fx.Node)


def is_square(node: fx.Node) -> bool:
    """A weighted layer whose first two weight axes are of one size, above one."""
    if not is_weighted(node):
        return False
    rows, columns = shape(node.args[1])[:2]
    return bool(rows == columns > 1)


def is_masked(node: fx.Node) -> bool:
    """Attention with a mask that is computed from the inputs."""
    return node.target is ATTENTION and isinstance(argument(node, 3), fx.Node)


def is_boolean(node: Any) -> bool:
    """True for a tensor of booleans."""
    value = recorded_tensor(node) if isinstance(node, fx.Node) else None
    return value is not None and value.dtype is torch.bool


def recorded(node: fx.Node) -> Tensor:
    """The recorded value, which is there."""
    value = recorded_tensor(node)
    assert value is not None
    return value
