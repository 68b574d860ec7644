"""The attentions of a program, and why one of them cannot become linear."""

from dataclasses import dataclass, replace

import torch
from torch import fx

from flowopt.analysis.attention_call import AttentionCall, attention_call
from flowopt.analysis.attention_origins import of_other_tokens
from flowopt.analysis.captured import Captured
from flowopt.analysis.mask_kind import MaskKind, mask_kind
from flowopt.analysis.written_attention import Bias, WrittenAttention, written_attention
from flowopt.ir.metadata import module_path, recorded_tensor, sizes_as_text, source_line, static_size
from flowopt.ops.attention.linear_form import AttentionShape
from flowopt.report.sites import Refusal

__all__ = ["AttentionSite", "attention_nodes", "attention_site", "attention_sites"]

# Of what is wrong with written scores, the first counts.
_WORST_FIRST = ("alibi", "relative-bias", "additive-bias", "arbitrary-mask", "axis-mismatch")


@dataclass(frozen=True, slots=True)
class AttentionSite:
    """One attention.

    Attributes:
        name: node whose value is the attention's output: the call, or for attention that is written out the product
            with the values.
        position: among the model's attentions, from 0, in graph order.
        module: path of the module that it came from, for people.
        query, key, value: names of the nodes that it reads, (B, H, L, D), (B, G, S, D), (B, G, S, M).
        mask: node of the mask; None without one.
        has_padding: the mask hides padding; else it is only causal, and is not needed.
        shape: heads of the queries, features, and whether it is causal, by flag or by what the mask is.
        key_heads: G.
        query_length, key_length: at the captured sizes.
        refusal: why it cannot become linear; always there for attention that is written out.
    """

    name: str
    position: int
    module: str | None
    query: str
    key: str
    value: str
    mask: str | None
    has_padding: bool
    shape: AttentionShape
    key_heads: int
    query_length: int
    key_length: int
    refusal: Refusal | None


def attention_sites(program: Captured) -> tuple[AttentionSite, ...]:
    """Every attention in graph order: calls of scaled_dot_product_attention, and what is written out."""
    known: dict[tuple[str, ...], MaskKind] = {}
    found = (_site(program, node, at, known) for at, node in enumerate(attention_nodes(program.graph)))
    return tuple(found)


def attention_site(program: Captured, node: fx.Node) -> AttentionSite | None:
    """The attention whose output is a node; None where it is that of none."""
    nodes = attention_nodes(program.graph)
    return _site(program, node, nodes.index(node), {}) if node in nodes else None


def attention_nodes(graph: fx.Graph) -> tuple[fx.Node, ...]:
    """Outputs of attentions in graph order. None is looked into."""
    return tuple(n for n in graph.nodes if attention_call(n) is not None or written_attention(n) is not None)


def _site(program: Captured, node: fx.Node, position: int, known: dict[tuple[str, ...], MaskKind]) -> AttentionSite:
    call = attention_call(node)
    if call is not None:
        return _called(program, call, position, known)
    written = written_attention(node)
    assert written is not None  # the nodes of attentions are of one kind or the other
    return _written(program, written, position)


def _called(
    program: Captured, call: AttentionCall, position: int, known: dict[tuple[str, ...], MaskKind]
) -> AttentionSite:
    code, message = _unfit(call)
    kind = MaskKind() if code or call.mask is None else _known_kind(program, call, known)
    code, message = (code, message) if code else (kind.code, kind.message)
    is_causal = call.is_causal or kind.is_causal
    lengths = [sizes_as_text(node)[-2:-1] for node in (call.query, call.key)]
    if not code and is_causal and lengths[0] != lengths[1]:
        code, message = "axis-mismatch", f"causal attention of {lengths[0][0]} queries to {lengths[1][0]} keys"
    # What is causal counts the places of keys as those of queries.
    is_cross = lengths[0] != lengths[1] or (not is_causal and bool(of_other_tokens(call.query, call.key)))
    site = AttentionSite(
        name=call.node.name,
        position=position,
        module=module_path(call.node) or None,
        query=call.query.name,
        key=call.key.name,
        value=call.value.name,
        mask=None if call.mask is None else call.mask.name,
        has_padding=kind.has_padding,
        shape=_shape(program, call.query, call.value, call.scale, is_causal=is_causal, is_cross=is_cross),
        key_heads=_size(program, call.key, -3),
        query_length=_size(program, call.query, -2),
        key_length=_size(program, call.key, -2),
        refusal=None,
    )
    return replace(site, refusal=_refusal(call.node, code, message)) if code else site


def _known_kind(program: Captured, call: AttentionCall, known: dict[tuple[str, ...], MaskKind]) -> MaskKind:
    """The kind of the call's mask, which all layers of a model may share."""
    mask, query, key = call.mask, recorded_tensor(call.query), recorded_tensor(call.key)
    recorded = recorded_tensor(mask)
    assert mask is not None and query is not None and key is not None and recorded is not None
    lengths = (query.shape[-2], key.shape[-2])
    name = (mask.name, *map(str, lengths))
    if name not in known:
        known[name] = mask_kind(program, mask, *lengths, is_added=recorded.is_floating_point())
    return known[name]


def _unfit(call: AttentionCall) -> tuple[str, str]:
    """Code and words for a call that no stand-in takes, whatever its mask; empty where there is none."""
    nodes = [call.query, call.key, call.value, *([] if call.mask is None else [call.mask])]
    unknown = [node.name for node in nodes if recorded_tensor(node) is None]
    if unknown:
        return "missing-metadata", f"{unknown[0]} has no recorded shape and dtype"
    if call.dropout:
        return "train-mode", f"dropout_p is {call.dropout}"
    query, key, value = (sizes_as_text(node) for node in nodes[:3])
    sizes = f"queries {', '.join(query)}; keys {', '.join(key)}; values {', '.join(value)}"
    if (len(query), len(key), len(value)) != (4, 4, 4) or key[:3] != value[:3] or query[0] != key[0]:
        return "unsupported-spelling", f"queries, keys and values are not of shape (B, H, L, D): {sizes}"
    heads, key_heads = static_size(call.query, 1), static_size(call.key, 1)
    features = (static_size(call.query, 3), static_size(call.value, 3))
    if heads is None or key_heads is None or None in features:
        return "dynamic-shape", f"the number of heads or of features is free: {sizes}"
    if not call.has_number_scale:
        return "unsupported-spelling", "the scale is computed at run time"
    if call.scale is not None and not call.scale > 0:
        return "unsupported-spelling", f"the scale is {call.scale:g}; only positive ones keep the order of scores"
    if heads % key_heads or (key_heads not in (1, heads) and not call.enable_gqa):
        return "unsupported-spelling", f"{key_heads} heads of keys do not go with {heads} of queries"
    return "", ""


def _written(program: Captured, parts: WrittenAttention, position: int) -> AttentionSite:
    code, message = _written_code(program, parts)
    masks = [bias.node.name for bias in parts.biases]
    return AttentionSite(
        name=parts.output.name,
        position=position,
        module=module_path(parts.output) or None,
        query=parts.query.name,
        key=parts.key.name,
        value=parts.value.name,
        mask=masks[-1] if masks else None,
        has_padding=bool(masks),
        shape=_shape(program, parts.query, parts.value, 1.0, is_causal=False),
        key_heads=_size(program, parts.value, -3),
        query_length=_size(program, parts.softmax, -2),
        key_length=_size(program, parts.softmax, -1),
        refusal=_refusal(parts.output, code, message),
    )


def _written_code(program: Captured, parts: WrittenAttention) -> tuple[str, str]:
    if parts.caps:
        return "soft-cap", f"{parts.caps[0].name} bounds the scores"
    if parts.joined:
        return "attention-sinks", f"{parts.joined[0].name} puts other columns beside the scores"
    kinds = [kind for bias in parts.biases if (kind := _bias_kind(program, bias)).code]
    for code in _WORST_FIRST:
        found = [kind for kind in kinds if kind.code == code]
        if found:
            return code, found[0].message
    message = f"{parts.softmax.name} and the product {parts.output.name} are written out; only calls of "
    return "attention-not-recognized", message + "scaled_dot_product_attention are linearized"


def _bias_kind(program: Captured, bias: Bias) -> MaskKind:
    scores = recorded_tensor(bias.scores)
    if recorded_tensor(bias.node) is None or scores is None or scores.dim() < 2:
        return MaskKind()
    *_, queries, keys = scores.shape
    has_heads = scores.dim() > 3
    return mask_kind(
        program,
        bias.node,
        queries,
        keys,
        is_added=bias.is_added,
        is_inverted=bias.is_inverted,
        has_heads=has_heads,
    )


def _refusal(node: fx.Node, code: str, message: str) -> Refusal:
    return Refusal(node.name, module_path(node), source_line(node), code, message, node.name)


def _shape(
    program: Captured,
    query: fx.Node,
    value: fx.Node,
    scale: float | None,
    *,
    is_causal: bool,
    is_cross: bool = False,
) -> AttentionShape:
    features = _size(program, query, -1)
    factor = features**-0.5 if scale is None else scale
    return AttentionShape(_size(program, query, -3), features, _size(program, value, -1), is_causal, factor, is_cross)


def _size(program: Captured, node: fx.Node, axis: int) -> int:
    """Size of an axis at the captured sizes; 1 of an axis that there is not."""
    value = recorded_tensor(node)
    if value is None or value.dim() < -axis:
        return 1
    size: int | torch.SymInt = value.shape[axis]
    return program.concrete_size(size, {dim.name: dim.traced for dim in program.dims})
