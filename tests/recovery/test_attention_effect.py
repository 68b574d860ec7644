from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as attend

import flowopt
from flowopt.analysis.attention_sites import attention_sites
from flowopt.errors import UserError
from flowopt.ops.attention import InPlaceOfSoftmax, MeanAttention
from flowopt.program.program import Program
from flowopt.recovery.attention_effect import attention_effects
from tests.passes.programs import normal

TOKENS = 5


class Twice(nn.Module):
    """Two attentions, the second after the first; what computes each is given."""

    def __init__(self, output: str) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {self.output: self.computed(x, mask, attend, attend), "embedding": x.mean((1, 2))}

    def computed(self, x: Tensor, mask: Tensor, first: Callable[..., Tensor], second: Callable[..., Tensor]) -> Tensor:
        seen = mask[:, None, None, :].bool()
        x = x + first(x, 2.0 * x, x.flip(-1), attn_mask=seen)
        return second(x, x, x, attn_mask=seen)[:, 0]


def even(q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor) -> Tensor:
    return attend(torch.zeros_like(q), k, v, attn_mask=attn_mask)


MASK = torch.tensor([[1] * TOKENS, [1] * 3 + [0] * 2])
BATCHES = [{"x": normal(2, 1, TOKENS, 4, dtype=torch.float64, seed=seed), "mask": MASK} for seed in (0, 1)]


def effects_of(module: Twice, outputs: tuple[str, ...]) -> list[float]:
    program: Program = flowopt.capture(module.eval(), (), BATCHES[0])
    sites = attention_sites(program)
    # Padding is hidden by the masks: the stand-ins have to get them.
    sites = tuple(s for s in sites if s.has_padding)
    leaves = {site.name: InPlaceOfSoftmax(MeanAttention(site.shape)) for site in sites}
    found = attention_effects(program, sites, leaves, BATCHES, outputs)
    assert list(found) == [site.name for site in sites]
    return list(found.values())


def both_ways(module: Twice, batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    x, mask = batch["x"], batch["mask"]
    changed = [module.computed(x, mask, even, attend), module.computed(x, mask, attend, even)]
    return module.computed(x, mask, attend, attend), changed


def test_the_effect_on_logits_is_the_divergence_of_what_they_choose() -> None:
    module = Twice("logits")
    wanted = [0.0, 0.0]
    for batch in BATCHES:
        original, changed = both_ways(module, batch)
        for at, one in enumerate(changed):
            kl = (original.softmax(-1) * (original.log_softmax(-1) - one.log_softmax(-1))).sum(-1)
            wanted[at] += float(kl.sum()) / (2 * kl.numel())
    # Logarithms and sums of a few numbers in float64.
    assert effects_of(module, ("logits", "embedding")) == pytest.approx(wanted, rel=1e-10)


def test_the_effect_on_other_outputs_is_their_relative_error() -> None:
    module = Twice("hidden")
    wanted = [0.0, 0.0]
    for batch in BATCHES:
        original, changed = both_ways(module, batch)
        for at, one in enumerate(changed):
            wanted[at] += float((one - original).square().sum() / original.square().sum()) / 2
    # Sums of a few squares in float64.
    assert effects_of(module, ("hidden",)) == pytest.approx([value**0.5 for value in wanted], rel=1e-10)


def test_rows_at_padding_do_not_count() -> None:
    class Tokens(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            # Without a mask inside, what stands at padding changes by much.
            return attend(x, x, x, attn_mask=mask[:, None, None, :].bool())[:, 0] * (1 + 1e3 * (1 - mask[..., None]))

    program = flowopt.capture(Tokens().eval(), (), BATCHES[0])
    sites = attention_sites(program)
    leaves = {site.name: InPlaceOfSoftmax(MeanAttention(site.shape)) for site in sites}
    whole, real = (
        attention_effects(program, sites, leaves, BATCHES, ["output"], padding=padding)[sites[0].name]
        for padding in (None, "mask")
    )
    x = torch.cat([batch["x"] for batch in BATCHES])
    seen = MASK.repeat(2, 1)[:, None, None, :].bool()
    kept = MASK.repeat(2, 1)[:, None, :, None]
    original, changed = attend(x, x, x, attn_mask=seen) * kept, even(x, x, x, attn_mask=seen) * kept
    parts = zip(original.split(2), changed.split(2), strict=True)
    wanted = sum(float((b - a).square().sum() / a.square().sum()) / 2 for a, b in parts) ** 0.5
    assert real == pytest.approx(wanted, rel=1e-10)  # sums of a few squares in float64
    assert abs(whole - real) > 0.01


def test_no_batch_is_told() -> None:
    program = flowopt.capture(Twice("logits").eval(), (), BATCHES[0])
    with pytest.raises(UserError, match="no calibration batch"):
        attention_effects(program, (), {}, [], ["logits"])
