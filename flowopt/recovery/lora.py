"""Distillation by low-rank adapters: the weights stay, and what is learnt on top of them is added at the end.

    W' = W + (alpha / rank) B A

Source: Hu et al., LoRA, arXiv:2106.09685; Zhang et al., LoLCATs, arXiv:2410.10254, for what it repairs.
"""

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import fx

from flowopt.errors import UserError
from flowopt.recovery.low_rank import LowRank
from flowopt.recovery.settings import LoraLayers, RecoverySettings
from flowopt.recovery.trainable import Trainable

_aten = torch.ops.aten
_LINEAR = _aten.linear.default
_ATTENTION = _aten.scaled_dot_product_attention.default


@contextlib.contextmanager
def low_rank(student: Trainable, settings: RecoverySettings) -> Iterator[None]:
    """Within it, the student is trained as the settings say; then what was learnt is in its weights.

    Raises:
        UserError: as ``attach_low_rank``.
    """
    if not settings.lora_rank:
        yield
        return
    attach_low_rank(
        student, rank=settings.lora_rank, alpha=settings.lora_alpha, layers=settings.lora_layers, seed=settings.seed
    )
    try:
        yield
    finally:
        student.tensors.merge()


def attach_low_rank(student: Trainable, *, rank: int, alpha: float, layers: LoraLayers, seed: int) -> tuple[str, ...]:
    """Freeze the student's weights, and give those of linear layers an adapter each; its leaves are trained as before.

    Args:
        student: changed in place; it computes what it did. ``student.tensors.merge()`` ends it.
        rank: at least 1.
        alpha: the change is scaled by ``alpha / rank``.
        layers: ``attention``: the nearest linear layers before query, key and value, and behind the output, of every
            attention, linearized or a call of ``scaled_dot_product_attention``; ``all``: every linear layer.
        seed: of the adapters.

    Returns:
        Names of the stored tensors that have one.

    Raises:
        UserError: there is no such layer whose weight is trained.
    """
    nodes = [node for node in student.program.graph.nodes if node.target is _LINEAR]
    chosen = set(nodes) if layers == "all" else _around_attention(student)
    weights = [node.args[1] for node in nodes if node in chosen]
    names = [str(w.target) for w in weights if isinstance(w, fx.Node) and w.op == "get_attr"]
    trained = tuple(name for name in dict.fromkeys(names) if student.tensors.parameter(name) is not None)
    if not trained:
        where = "around attention " if layers == "attention" else ""
        raise UserError(
            f"the model has no linear layer {where}that low-rank adapters could be put at",
            hint="lora_layers='all', or no adapters" if layers == "attention" else "no adapters: --lora 0",
        )
    generator = torch.Generator().manual_seed(seed)
    maker = partial(LowRank, rank=rank, alpha=alpha, generator=generator)
    student.tensors.adapt(dict.fromkeys(trained, maker))
    return trained


def _around_attention(student: Trainable) -> set[fx.Node]:
    program = student.program
    linearized = {name: student.sources(name)[:3] for name in student.leaves if len(student.sources(name)) > 1}
    found: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.name in linearized:
            found |= _before(map(program.node, linearized[node.name])) | _behind(node)
        elif node.target is _ATTENTION:
            found |= _before(arg for arg in node.args[:3] if isinstance(arg, fx.Node)) | _behind(node)
    return found


def _before(values: Iterable[fx.Node]) -> set[fx.Node]:
    """The nearest linear layers that values come from."""
    found: set[fx.Node] = set()
    seen: set[fx.Node] = set()
    pending = list(values)
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.target is _LINEAR:
            found.add(node)
        else:
            pending += _tensors(node)
    return found


def _behind(value: fx.Node) -> set[fx.Node]:
    """The nearest linear layers that read a value, itself or what is made of it alone."""
    found: set[fx.Node] = set()
    seen = {value}
    pending = [value]
    while pending:
        for reader in pending.pop().users:
            if reader.target is _LINEAR:
                found.add(reader)
            elif reader not in seen and all(one in seen or one.op == "get_attr" for one in _tensors(reader)):
                seen.add(reader)
                pending.append(reader)
    return found


def _tensors(node: fx.Node) -> list[fx.Node]:
    """What a node reads, sizes apart."""
    return [one for one in node.all_input_nodes if not isinstance(one.meta.get("val"), int | torch.SymInt)]
