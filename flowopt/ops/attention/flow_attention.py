"""Flow-Attention: linear attention in which sources compete and sinks are allotted by conserved flows."""

import math
from typing import final

import torch
from torch import Tensor, nn

from flowopt.errors import UserError
from flowopt.ops.attention.causal_product import causal_product
from flowopt.ops.attention.conserved_flows import conserved_flows
from flowopt.ops.attention.linear_form import AttentionShape, Form, LinearForm, State
from flowopt.ops.attention.require_tokens import require_tokens


@final
class FlowAttention(LinearForm):
    """R_i = scale * sigmoid(I'_i * L / S) * (Q_i / I_i) . sum_j K_j^T (S * softmax_j(O') v_j), Q, K = sigmoid(q), (k).

    I, I' and O' are the flows of ``conserved_flows``, O' cut to [-clamp, clamp]. Causal: every sum ends at the token's
    own position i, I and O are divided by how many tokens were seen until there, n_i, and L / S is 1.

    Rows of weights do not sum up to 1 but to about sigmoid(1), which the scale takes back at first. The softmax's own
    scale is not used.

    The causal state is (sum K, sum Q, sum K / O, sum Q / I, sum exp(O'), sum K^T (competing v), n): four (B, H, 1, D),
    (B, H, 1, 1), (B, H, D, M), (B, 1, 1, 1).

    Args:
        shape: of the attention. Unless ``is_cross``, what the mask hides counts as no query either.
        form, chunk: see ``LinearForm``. Attention that is not causal has one form.
        eps: added to both factors of every flow.
        clamp: bound of the conserved outgoing flow; None: without. Causal attention cannot take the largest out of
            its exponentials, and overflows without a bound where one flow is above 88.

    Attributes:
        output_scale: (H, 1, 1), 1 / sigmoid(1) at first.

    Raises:
        UserError: eps is negative, or clamp not positive.

    Source: Wu et al., "Flowformer", arXiv:2202.06258, section 3; the clamp is that of the published code.
    """

    output_scale: nn.Parameter

    def __init__(
        self,
        shape: AttentionShape,
        *,
        form: Form = "chunked",
        chunk: int = 64,
        eps: float = 1e-6,
        clamp: float | None = 1.0,
    ) -> None:
        super().__init__()
        if eps < 0:
            raise UserError(f"eps={eps} must not be negative")
        if clamp is not None and clamp <= 0:
            raise UserError(f"clamp={clamp} must be positive", hint="None is without a bound")
        require_tokens("chunk", chunk)
        self.shape, self.form, self.chunk = shape, form, chunk
        self.eps, self.clamp = eps, clamp
        self.output_scale = nn.Parameter(torch.full((shape.heads, 1, 1), 1 + math.exp(-1)))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> Tensor:
        precise = torch.promote_types(value.dtype, torch.float32)
        sources_seen = None if key_mask is None else key_mask.transpose(-1, -2)
        sinks_seen = None if self.shape.is_cross else sources_seen
        q = _features(query, precise, sinks_seen)
        k = _features(key, precise, sources_seen)
        v = value.to(precise)
        if not self.shape.is_causal:
            made = self._to_all(q, k, v, sinks_seen, sources_seen)
        else:
            seen = _ones_where(k, sources_seen)
            made = self._recurrent(q, k, v, seen) if self.form == "recurrent" else self._causal(q, k, v, seen)
        return (made * self.output_scale.to(precise)).to(value.dtype)

    def initial_state(self, like: Tensor) -> State:
        if not self.shape.is_causal:
            raise UserError("attention to all tokens has no state", hint="only causal attention goes token by token")
        precise = torch.promote_types(like.dtype, torch.float32)
        batch, heads = like.shape[:2]
        wide, values = self.shape.head_dim, self.shape.value_dim
        sizes = [(heads, 1, wide)] * 4 + [(heads, 1, 1), (heads, wide, values), (1, 1, 1)]
        return tuple(torch.zeros(batch, *size, dtype=precise, device=like.device) for size in sizes)

    def step(self, query: Tensor, key: Tensor, value: Tensor, state: State) -> tuple[Tensor, State]:
        precise = state[0].dtype
        q, k = _features(query, precise, None), _features(key, precise, None)
        made, state = self._token(q, k, value.to(precise), torch.ones_like(k[..., :1]), state)
        return (made * self.output_scale.to(precise)).to(value.dtype), state

    def _to_all(
        self, q: Tensor, k: Tensor, v: Tensor, sinks_seen: Tensor | None, sources_seen: Tensor | None
    ) -> Tensor:
        flows = conserved_flows(q, k, self.eps, sinks_seen, sources_seen)
        sinks, sources = _count(q, sinks_seen), _count(k, sources_seen)
        outgoing = self._bounded(flows.conserved_outgoing)
        if sources_seen is not None:
            outgoing = outgoing.masked_fill(~sources_seen, torch.finfo(outgoing.dtype).min)
        competing = v * (outgoing.softmax(2) * sources)
        allotted = (flows.conserved_incoming * (sinks / sources)).sigmoid()
        return allotted * ((q / flows.incoming) @ (k.transpose(-1, -2) @ competing))

    def _causal(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
        count = _at_least_one(seen.cumsum(2))
        incoming = self._flow(q, k.cumsum(2), seen)
        outgoing = self._flow(k, q.cumsum(2), seen)
        allotted = (self._flow(q, (k * (count / outgoing)).cumsum(2), seen) / count).sigmoid()
        out = self._bounded(self._flow(k, (q * (count / incoming)).cumsum(2), seen) / count)
        rivals = out.exp() * seen
        competing = v * (count * rivals / _positive(rivals.cumsum(2)))
        chunk = self.chunk if self.form == "chunked" else None
        return allotted * causal_product(q / incoming, k, competing, chunk)

    def _recurrent(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
        state, made = self.initial_state(q), []
        tokens = zip(q.split(1, 2), k.split(1, 2), v.split(1, 2), seen.split(1, 2), strict=True)
        for q_i, k_i, v_i, seen_i in tokens:
            one, state = self._token(q_i, k_i, v_i, seen_i, state)
            made.append(one)
        return torch.cat(made, 2)

    def _token(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor, state: State) -> tuple[Tensor, State]:
        keys, queries, count = state[0] + k, state[1] + q, state[6] + seen[:, :1]
        own = _at_least_one(count)
        incoming, outgoing = self._flow(q, keys, seen), self._flow(k, queries, seen)
        given, taken = state[2] + k * (own / outgoing), state[3] + q * (own / incoming)
        out = self._bounded(self._flow(k, taken, seen) / own)
        rivals = out.exp() * seen
        all_rivals = state[4] + rivals
        products = state[5] + k.transpose(-1, -2) @ (v * (own * rivals / _positive(all_rivals)))
        made = (self._flow(q, given, seen) / own).sigmoid() * ((q / incoming) @ products)
        return made, (keys, queries, given, taken, all_rivals, products, count)

    def _flow(self, one: Tensor, others: Tensor, seen: Tensor) -> Tensor:
        """1 where a token is none, and above 0 elsewhere."""
        flow = ((one + self.eps) * (others + self.eps)).sum(-1, keepdim=True)
        return flow * seen + (1 - seen)

    def _bounded(self, outgoing: Tensor) -> Tensor:
        return outgoing if self.clamp is None else outgoing.clamp(-self.clamp, self.clamp)


def _features(x: Tensor, dtype: torch.dtype, seen: Tensor | None) -> Tensor:
    features = x.to(dtype).sigmoid()
    return features if seen is None else features * seen.to(dtype)


def _count(x: Tensor, seen: Tensor | None) -> Tensor:
    """How many tokens are real, at least 1, as (B, 1, 1, 1)."""
    return _at_least_one(_ones_where(x[:, :1], seen).sum(2, keepdim=True))


def _ones_where(x: Tensor, seen: Tensor | None) -> Tensor:
    ones = torch.ones_like(x[..., :1])
    return ones if seen is None else ones * seen.to(x.dtype)


def _at_least_one(count: Tensor) -> Tensor:
    return count.clamp(min=1.0)


def _positive(total: Tensor) -> Tensor:
    """0 only before the first real token, where it divides 0."""
    return total.clamp(min=torch.finfo(total.dtype).tiny)
