"""The policy for 16 bits: a norm or a softmax is not taken apart without casts.

Their kernels take float16 and bfloat16, and compute in float32 inside. The same formula in separate operators rounds
every step: a square overflows float16 from 256 on, a mean that is rounded to 8 bits no longer centres its row. Numbers
show that for some inputs only; the structure shows it always.

A claim is accused when its new side has fewer such kernels than its old side, and computes more of their *parts* in 16
bits: a square or an exponential that is summed; the sum; the root, the logarithm or the division by it, and what it is
subtracted from. What was written by hand in 16 bits may stay so.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Set

import torch
from torch import Tensor, fx

from flowopt.pipeline.instrument import PassRun
from flowopt.report.verdict import Finding
from flowopt.verification.sites.site_check import whole_claims

_NARROW = (torch.float16, torch.bfloat16)
# By name, so that all overloads count. The batch norm of evaluation computes no statistics, and is none of them.
_NORMS = frozenset(
    "layer_norm native_layer_norm rms_norm _fused_rms_norm group_norm native_group_norm instance_norm softmax _softmax"
    " _safe_softmax log_softmax _log_softmax scaled_dot_product_attention _scaled_dot_product_flash_attention"
    " _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention"
    " _scaled_dot_product_cudnn_attention cross_entropy_loss cosine_similarity".split()
)
_STATISTICS = frozenset("var var_mean std std_mean linalg_vector_norm norm logsumexp logcumsumexp".split())
_SUMS = _STATISTICS | frozenset(
    "sum nansum mean nanmean cumsum avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d"
    " adaptive_avg_pool3d".split()
)
_PRODUCTS = frozenset("matmul mm bmm addmm baddbmm dot mv einsum linear linalg_vecdot inner".split())
_EXPONENTIALS = frozenset("exp exp2 expm1".split())
_INVERSES = frozenset("rsqrt sqrt reciprocal log log2 log10 log1p".split())
_SAME_VALUES = frozenset("_to_copy to type_as clone alias contiguous view reshape unsqueeze squeeze expand".split())


def sixteen_bit_findings(run: PassRun) -> Iterator[Finding]:
    """A finding for every claim that takes a kernel apart in 16 bits; nothing is computed.

    Args:
        run: the pass, with the program before and after it.
    """
    if not any(_is_narrow(node) for node in run.before.graph.nodes):
        return
    before = {node.name: node for node in run.before.graph.nodes}
    after = {node.name: node for node in run.after.graph.nodes}
    for anchor, claim in whole_claims(run.application, after):
        if claim.old not in before:
            continue
        new, shared = _side(after[claim.new], before.keys())
        old, _ = _side(before[claim.old], shared)
        lost = next((kind for kind in (_NORMS, _STATISTICS) if _count(old, kind) > _count(new, kind)), None)
        parts = Counter(map(_name, _parts(new))) - Counter(map(_name, _parts(old)))
        if lost is not None and parts:
            kernel = next(node for node in sorted(old) if _reads_narrow(node) and _name(node) in lost)
            yield Finding("precision", anchor, "any", _message(kernel, parts))


def _message(kernel: fx.Node, parts: Iterable[str]) -> str:
    dtype = next(t.dtype for node in kernel.all_input_nodes for t in _tensors(node) if t.dtype in _NARROW)
    return (
        f"{_name(kernel)} of {dtype} computes in float32 and became {', '.join(sorted(parts))} in {dtype}: "
        "cast to float32 before the reduction and back after"
    )


def _count(nodes: set[fx.Node], names: Set[str]) -> int:
    return sum(_name(node) in names and _reads_narrow(node) for node in nodes)


def _side(end: fx.Node, boundary: Set[str]) -> tuple[set[fx.Node], set[str]]:
    """The nodes from a boundary to the end of a claim, and the names of the boundary where it was met."""
    if end.name in boundary:
        return set(), {end.name}
    nodes, met, pending = {end}, set[str](), [end]
    while pending:
        for source in pending.pop().all_input_nodes:
            if source.name in boundary:
                met.add(source.name)
            elif source not in nodes:
                nodes.add(source)
                pending.append(source)
    return nodes, met


def _parts(nodes: set[fx.Node]) -> Iterator[fx.Node]:
    """What norms and softmaxes are made of, where its result has 16 bits."""
    found: set[fx.Node] = set()
    for node in nodes:
        if _name(node) in _SUMS | _PRODUCTS:
            uses = set(_uses(node, nodes))
            # A wide sum is right to be cast back before it is subtracted or divides, but its root may not fit.
            found |= uses | {node} if uses and _is_narrow(node) else {n for n in uses if _name(n) not in ("div", "sub")}
        elif _is_summand(node):
            sums = {n for _, n in _steps(node, nodes) if _name(n) in _SUMS}
            found |= sums | ({node} if sums else set())
    yield from (node for node in found if _is_narrow(node))


def _is_summand(node: fx.Node) -> bool:
    """True for squares and exponentials: what is summed in a norm or a softmax."""
    if _name(node) == "mul":
        return len({_source(factor) for factor in node.args[:2]}) == 1
    return _name(node) in _EXPONENTIALS or _name(node) == "square" or _exponent(node) > 1


def _uses(total: fx.Node, nodes: set[fx.Node]) -> Iterator[fx.Node]:
    """Where a sum ends: roots and logarithms of it, divisions by it, and differences from it."""
    # A layer's output is subtracted from its input in many a model.
    unless = ("sub",) if _name(total) in _PRODUCTS else ()
    return (n for source, n in _steps(total, nodes) if _is_use(source, n) and _name(n) not in unless)


def _is_use(source: fx.Node, node: fx.Node) -> bool:
    if _name(node) in ("div", "sub"):
        return node.args[1] is source
    return _name(node) in _INVERSES or _exponent(node) < 1


def _steps(start: fx.Node, nodes: set[fx.Node]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Reads of ``start`` and of what is made of it element by element: (what is read, by which node)."""
    pending, seen = [start], {start}
    while pending:
        source = pending.pop()
        for node in source.users:
            if node not in nodes:
                continue
            yield source, node
            if node not in seen and not _is_use(source, node) and _name(node) not in _NORMS | _SUMS | _PRODUCTS:
                seen.add(node)
                pending.append(node)


def _exponent(node: fx.Node) -> float:
    exponent = node.args[1] if _name(node) == "pow" else 1
    return float(exponent) if isinstance(exponent, (int, float)) else 1.0


def _source(factor: object) -> object:
    """What a factor was before it was cast or reshaped."""
    while isinstance(factor, fx.Node) and _name(factor) in _SAME_VALUES:
        factor = factor.args[0]
    return factor


def _name(node: fx.Node) -> str:
    target = node.target
    return target.overloadpacket.__name__ if isinstance(target, torch._ops.OpOverload) else str(target)


def _reads_narrow(node: fx.Node) -> bool:
    return any(map(_is_narrow, node.all_input_nodes))


def _is_narrow(node: fx.Node) -> bool:
    return any(tensor.dtype in _NARROW for tensor in _tensors(node))


def _tensors(node: fx.Node) -> Iterator[Tensor]:
    value = node.meta.get("val")
    yield from (t for t in (value if isinstance(value, (list, tuple)) else (value,)) if isinstance(t, Tensor))
