"""The attentions of a program, and why one of them cannot become linear."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, fx

from flowopt.analysis.attention_call import AttentionCall, attention_call
from flowopt.ir.metadata import module_path, recorded_tensor
from flowopt.ops.attention.linear_form import AttentionShape
from flowopt.report.sites import Refusal

__all__ = ["AttentionSite", "attention_sites"]


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
        refusal: why it cannot become linear.
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


class HasSize(Protocol):
    """A free dimension, as far as its captured size is asked for."""

    @property
    def name(self) -> str: ...
    @property
    def traced(self) -> int: ...


class Captured(Protocol):
    """A captured program, as far as attention is found in it: analysis knows no programs."""

    @property
    def graph(self) -> fx.Graph: ...
    @property
    def dims(self) -> Sequence[HasSize]: ...
    @property
    def example(self) -> Mapping[str, Tensor]: ...

    def read(self, name: str) -> Tensor:
        """The stored tensor of a name."""

    def concrete_size(self, size: int | torch.SymInt, sizes: Mapping[str, int]) -> int:
        """One size when the free dimensions take ``sizes``; TypeError when it depends on data."""


def attention_sites(program: Captured) -> tuple[AttentionSite, ...]:
    """Every attention, in graph order: calls of scaled_dot_product_attention."""
    calls = [call for node in program.graph.nodes if (call := attention_call(node)) is not None]
    return tuple(_site(program, call, at) for at, call in enumerate(calls))


def _site(program: Captured, call: AttentionCall, position: int) -> AttentionSite:
    heads, length, head_dim = _last_sizes(program, call.query)
    key_heads, key_length, _ = _last_sizes(program, call.key)
    value_dim = _last_sizes(program, call.value)[2]
    scale = head_dim**-0.5 if call.scale is None else call.scale
    return AttentionSite(
        name=call.node.name,
        position=position,
        module=module_path(call.node) or None,
        query=call.query.name,
        key=call.key.name,
        value=call.value.name,
        mask=None if call.mask is None else call.mask.name,
        has_padding=call.mask is not None,
        shape=AttentionShape(heads, head_dim, value_dim, call.is_causal, scale),
        key_heads=key_heads,
        query_length=length,
        key_length=key_length,
        refusal=None,
    )


def _last_sizes(program: Captured, node: fx.Node) -> tuple[int, int, int]:
    """Heads, length and features at the captured sizes; 1 for an axis that there is not."""
    value = recorded_tensor(node)
    sizes = {dim.name: dim.traced for dim in program.dims}
    shape = () if value is None else tuple(program.concrete_size(size, sizes) for size in value.shape[-3:])
    heads, length, features = (*(1,) * (3 - len(shape)), *shape)
    return heads, length, features
