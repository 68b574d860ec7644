"""Flow-Attention against its formulas, token by token and pair by pair."""

import math

import pytest
import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.ops.attention.conserved_flows import conserved_flows
from flowopt.ops.attention.flow_attention import FlowAttention
from tests.ops.attention.random_attention import attention_shape, random_attention, random_tokens

EPS = 1e-6


def causal_by_hand(module: FlowAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Every sum written out for every position; each flow is computed once, at its own position."""
    q, k = query.sigmoid(), key.sigmoid()
    given, taken, outgoing, rows = [], [], [], []
    for i in range(query.shape[2]):
        n = i + 1
        incoming = ((q[:, :, i] + EPS) * (k[:, :, :n].sum(2) + EPS)).sum(-1, keepdim=True)
        leaving = ((k[:, :, i] + EPS) * (q[:, :, :n].sum(2) + EPS)).sum(-1, keepdim=True)
        given.append(k[:, :, i] * n / leaving)
        taken.append(q[:, :, i] * n / incoming)
        kept_in = ((q[:, :, i] + EPS) * (sum(given) + EPS)).sum(-1, keepdim=True) / n
        kept_out = ((k[:, :, i] + EPS) * (sum(taken) + EPS)).sum(-1, keepdim=True) / n
        outgoing.append(kept_out.clamp(-1, 1).exp())
        competing = n * outgoing[-1] / sum(outgoing)
        rows.append((q[:, :, i] / incoming, kept_in.sigmoid(), competing))
    made = []
    for i, (share, allotted, _) in enumerate(rows):
        pairs = [(share * k[:, :, j]).sum(-1, keepdim=True) * rows[j][2] * value[:, :, j] for j in range(i + 1)]
        made.append(allotted * sum(pairs))
    return torch.stack(made, 2) * module.output_scale


@torch.no_grad()
def test_the_causal_forms_are_the_published_sums() -> None:
    module = random_attention("flow", attention_shape(True))
    assert isinstance(module, FlowAttention)
    tokens = random_tokens(1, 12)
    assert (module(*tokens) - causal_by_hand(module, *tokens)).abs().max() < 1e-12  # sums of 12 products


@torch.no_grad()
@pytest.mark.parametrize("clamp", [None, 1.0])
def test_attention_to_all_tokens_is_the_published_formula(clamp: float | None) -> None:
    module = random_attention("flow", attention_shape(False, is_cross=True), clamp=clamp)
    assert isinstance(module, FlowAttention)
    query, key, value = random_tokens(2, 5, 9)
    q, k = query.sigmoid(), key.sigmoid()
    incoming = ((q + EPS) * (k.sum(2, True) + EPS)).sum(-1, True)
    leaving = ((k + EPS) * (q.sum(2, True) + EPS)).sum(-1, True)
    kept_in = ((q + EPS) * ((k / leaving).sum(2, True) + EPS)).sum(-1, True)
    kept_out = ((k + EPS) * ((q / incoming).sum(2, True) + EPS)).sum(-1, True)
    if clamp is not None:
        kept_out = kept_out.clamp(-clamp, clamp)
    competing = 9 * kept_out.exp() / kept_out.exp().sum(2, True)
    scores = (q / incoming) @ k.transpose(-1, -2)
    expected = module.output_scale * (kept_in * 5 / 9).sigmoid() * (scores @ (competing * value))
    assert (module(query, key, value) - expected).abs().max() < 1e-12  # sums of 9 products


@pytest.mark.parametrize("has_mask", [False, True])
def test_flows_are_conserved(has_mask: bool) -> None:
    query, key, _ = random_tokens(3, 20, 33)
    sinks_seen, sources_seen = torch.ones(1, 1, 20, 1).bool(), torch.ones(1, 1, 33, 1).bool()
    if has_mask:
        sinks_seen[:, :, 15:], sources_seen[:, :, :6] = False, False
    sinks, sources = query.sigmoid() * sinks_seen, key.sigmoid() * sources_seen
    flows = conserved_flows(sinks, sources, 0.0, sinks_seen, sources_seen)
    into, out = flows.conserved_incoming.sum(2), flows.conserved_outgoing.sum(2)
    assert (into - sources_seen.sum()).abs().max() < 1e-11  # sums of 33 quotients
    assert (out - sinks_seen.sum()).abs().max() < 1e-11  # sums of 33 quotients


@pytest.mark.parametrize("is_causal", [False, True])
def test_values_of_one_give_the_allotted_sum_of_competing_weights(is_causal: bool) -> None:
    module = random_attention("flow", attention_shape(is_causal))
    query, key, value = random_tokens(4, 40)
    weights = module(query, key, torch.eye(40, dtype=torch.float64).expand(2, 2, 40, 40))
    found = module(query, key, torch.ones_like(value))
    assert (found - weights.sum(-1, keepdim=True)).abs().max() < 1e-12  # sums of 40 weights


def test_the_output_scale_takes_back_what_allotting_takes_away() -> None:
    module = FlowAttention(attention_shape(False)).double()
    query, key, value = random_tokens(5, 400)
    assert (module.output_scale - 1 / torch.tensor(1.0).sigmoid()).abs().max() < 1e-6  # stored in float32
    # The conserved flow of a query spreads about 1 by a few tenths.
    assert abs(module(query, key, torch.ones_like(value)).mean().item() - 1) < 0.05


def test_every_head_has_an_output_scale_of_its_own() -> None:
    module = FlowAttention(attention_shape(True)).double()
    tokens = random_tokens(6, 9)
    before = module(*tokens)
    with torch.no_grad():
        module.output_scale[1] *= 2
    after = module(*tokens)
    assert torch.equal(after[:, 0], before[:, 0])
    assert torch.equal(after[:, 1], 2 * before[:, 1])


def test_competition_without_a_bound_does_not_overflow_for_many_queries() -> None:
    module = FlowAttention(attention_shape(False, is_cross=True), clamp=None)
    query, key, value = (x.float() for x in random_tokens(7, 4096, 4))
    assert module(query, key, value).isfinite().all()


def test_queries_of_other_tokens_are_not_hidden_by_the_key_mask() -> None:
    query, key, value = random_tokens(8, 9)
    mask = torch.arange(9).lt(5).view(1, 1, 1, 9)
    own, other = (
        random_attention("flow", attention_shape(False, is_cross=is_cross))(query, key, value, mask)
        for is_cross in (False, True)
    )
    assert own[:, :, 5:].eq(0).all()
    assert other[:, :, 5:].ne(0).all()


@pytest.mark.parametrize(("options", "reason"), [({"eps": -1.0}, "negative"), ({"clamp": 0.0}, "positive")])
def test_bounds_that_mean_nothing_are_refused(options: dict[str, float], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        FlowAttention(attention_shape(True), eps=options.get("eps", 1e-6), clamp=options.get("clamp", 1.0))


def test_the_first_token_gets_its_own_value() -> None:
    module = FlowAttention(attention_shape(True)).double()
    query, key, value = random_tokens(9, 1)
    # alpha (q / I) k^T v with I = q . k and a conserved flow of 1, but for eps.
    assert (module(query, key, value) - value).abs().max() < 1e-4
    assert math.isclose(module.output_scale[0].item(), 1 + math.exp(-1), rel_tol=1e-6)
