"""A short, stable text form of a graph, for golden tests and for people."""

import operator
from collections import Counter

import torch
from torch import fx

from flowopt.ir.metadata import recorded_tensor


def operator_name(node: fx.Node) -> str:
    """``aten.conv2d`` for the default overload, ``aten.mul.Tensor`` for others, ``getitem`` for Python's."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target).removesuffix(".default")
    return str(getattr(target, "__name__", target))


def graph_text(graph: fx.Graph) -> str:
    """One line per node: ``%name: f32[s0, 8] = aten.linear(%x, %w, %b)``; metadata other than types is left out."""
    lines = []
    for node in graph.nodes:
        if node.op == "output":
            lines.append(f"return {', '.join(map(_argument, node.args[0]))}")
            continue
        kind = _type(node)
        left = f"%{node.name}: {kind}" if kind else f"%{node.name}"
        if node.op == "placeholder":
            right = "input"
        elif node.op == "get_attr":
            right = f"tensor {node.target}"
        else:
            given = [_argument(a) for a in node.args] + [f"{k}={_argument(v)}" for k, v in node.kwargs.items()]
            right = f"{operator_name(node)}({', '.join(given)})"
        lines.append(f"{left} = {right}")
    return "\n".join(lines) + "\n"


def operator_census(graph: fx.Graph) -> Counter[str]:
    """How often each operator is called; picking an element out of a tuple is not an operation."""
    calls = (n for n in graph.nodes if n.op == "call_function" and n.target is not operator.getitem)
    return Counter(operator_name(node) for node in calls)


def _argument(value: object) -> str:
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_argument, value)) + "]"
    return str(value)


def _type(node: fx.Node) -> str:
    value = recorded_tensor(node)
    if value is None:
        return ""
    short = str(value.dtype).removeprefix("torch.").replace("float", "f").replace("int", "i")
    return f"{short}[{', '.join(map(str, value.shape))}]"
