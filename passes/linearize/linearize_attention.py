"""Put linear attention in the place of softmax attention.

    scaled_dot_product_attention(q, k, v, mask)  ->  leaf(q, k, v, mask)

The leaf is one of ``flowopt.ops.attention``: it never holds the matrix of all scores. Rotary embeddings stay before it,
as softmax attention had them; keys and values of fewer heads are repeated. Of the mask, the leaf reads which keys are
real: its last row, which is computed alone. Where the mask is causal alone, it reads nothing.

Numerical effect: APPROXIMATE, and no bound is known beforehand: an untrained map is about as good as the mean of the
values. Leaves come from transfer or training (``leaves``); ``flowopt adapt`` judges the outcome on held-out data, and
the budget here is for inputs of ordinary numbers.

Refuses when:
    not-measured              ``leaves`` has no stand-in for the attention, or one for another shape
    not-chosen                ``only`` names other attentions
    alibi                     the scores get a multiple of the distance added
    relative-bias             the scores get something added that is stored, such as biases by distance
    additive-bias             the scores get anything else added
    soft-cap                  the scores are bounded by a tanh
    attention-sinks           other columns stand beside the scores
    arbitrary-mask            a mask shows different queries different keys, and not those up to their own place: a
                              sliding window, blocks, one that depends on the tokens
    attention-not-recognized  the attention is written out as products and a softmax
    axis-mismatch             causal attention of as many queries as there are not keys
    train-mode                attention with dropout
    dynamic-shape             the number of heads or of features is free
    unsupported-spelling      queries, keys and values that are not of shape (B, H, L, D), keys of heads that do not
                              divide those of the queries, or a scale that is computed or not positive
    missing-metadata          something that the attention reads has no recorded shape

A site is a call of scaled_dot_product_attention, or a product of the weights of a softmax with values.

Attributes of the matched operators:
    scaled_dot_product_attention: query, key, value used; attn_mask used where it hides padding, else checked to be
    causal; dropout_p checked to be 0; is_causal, scale used: they are in the leaf's shape; enable_gqa checked.
    matmul, bmm: refused.

Source: Zhang et al., "LoLCATs", section 3; Wu et al., "Flowformer", section 3.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import fx

from flowopt.analysis.attention_call import ATTENTION
from flowopt.analysis.attention_sites import AttentionSite, attention_nodes, attention_site
from flowopt.ir.metadata import module_path
from flowopt.ops.attention.in_place_of_softmax import InPlaceOfSoftmax
from flowopt.passes.linearize._last_row import last_row
from flowopt.passes.linearize._traced import traced
from flowopt.program.program import Program
from flowopt.rewrite import Budget, Edit, Exactness, RewritePass, Site
from flowopt.rewrite.inlined import inlined

_aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Plan:
    """Put a leaf in the place of ``attention``, which reads the others.

    Attributes:
        attention: the call.
        query, key, value: what it reads.
        mask: None where the leaf needs none.
    """

    attention: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    mask: fx.Node | None


class LinearizeAttention(RewritePass[Plan]):
    """Put linear attention in the place of softmax attention."""

    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    anchors: ClassVar[tuple[Any, ...]] = (ATTENTION, _aten.matmul.default, _aten.bmm.default)

    to: str = "hybrid"
    "Name of what takes the place of softmax attention, for people: the leaves are what it is."
    only: str = ""
    "Names of the attentions to replace, joined by +; empty: all that there are leaves for."
    min_snr_db: float = 3.0
    "Budget on inputs of ordinary numbers: 3 dB is 71 % of relative error, which only nonsense exceeds."
    # Trained on data: modules have no place in a text form.
    leaves: Mapping[str, InPlaceOfSoftmax] = field(default_factory=dict, repr=False)
    # Tracing takes seconds, and layers differ in their tensors alone.
    _traced: dict[str, Program] = field(default_factory=dict, init=False, repr=False, compare=False)

    def budget(self) -> Budget:
        return Budget(min_snr_db=self.min_snr_db)

    def sites(self, program: Program) -> Iterable[fx.Node]:
        """Attentions: calls, and products of the weights of a softmax with values."""
        return attention_nodes(program.graph)

    def check(self, site: Site) -> Plan:
        found = attention_site(site.program, site.node)
        assert found is not None  # sites are attentions
        if found.refusal is not None:
            site.refuse(found.refusal.code, found.refusal.message)
        chosen = not self.only or found.name in self.only.split("+")
        site.require(chosen, "not-chosen", f"{found.name} is not among {self.only}")
        self._require_leaf(site, found)
        nodes = {node.name: node for node in site.program.graph.nodes}
        mask = nodes[found.mask] if found.mask is not None and found.has_padding else None
        return Plan(site.node, nodes[found.query], nodes[found.key], nodes[found.value], mask)

    def rewrite(self, edit: Edit, plan: Plan) -> str:
        leaf = self.leaves[plan.attention.name]
        inputs = {"query": plan.query, "key": plan.key, "value": plan.value}
        prefix = module_path(plan.attention) or plan.attention.name
        with edit.before(plan.attention):
            if plan.mask is not None:
                inputs["mask"] = last_row(edit, plan.mask)
            program = traced(leaf, inputs, self._traced)
            edit.replace(plan.attention, inlined(edit, program, inputs, prefix=prefix))
        shape = leaf.linear.shape
        kind = "causal" if shape.is_causal else "full"
        return f"{kind} attention of {shape.heads} heads -> {self.to} ({type(leaf.linear).__name__})"

    def _require_leaf(self, site: Site, found: AttentionSite) -> None:
        leaf = self.leaves.get(found.name)
        if leaf is None:
            site.refuse("not-measured", f"there is no trained stand-in for {found.name}")
        shape = leaf.linear.shape
        message = f"{found.name} is {found.shape}, its stand-in is for {shape}"
        site.require(shape == found.shape, "not-measured", message)
