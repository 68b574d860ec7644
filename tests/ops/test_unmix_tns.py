import copy
import math

import pytest
import torch
from torch import nn

from flowopt.errors import UserError
from flowopt.ops import UnMixTNS
from tests.ops.test_alpha_batch_norm import source_norm
from tests.ops.test_power_norm import tokens


def by_hand(norm: UnMixTNS, sample: list[list[float]]) -> list[list[float]]:
    """One sample, (channels, pixels), normalised as published."""
    own = [sum(pixels) / len(pixels) for pixels in sample]
    own_var = [sum((p - m) ** 2 for p in pixels) / len(pixels) for pixels, m in zip(sample, own, strict=True)]
    means, variances = norm.running_means_mat.tolist(), norm.running_vars_mat.tolist()
    scores = []
    for component in means:
        inner = sum(a * b for a, b in zip(own, component, strict=True))
        scores.append(math.exp(inner / math.hypot(*own) / math.hypot(*component) / 0.07))
    shares = [score / sum(scores) for score in scores]
    result = []
    for c, pixels in enumerate(sample):
        mixed = [(1 - p) * m[c] + p * own[c] for p, m in zip(shares, means, strict=True)]
        mixed_var = [(1 - p) * v[c] + p * own_var[c] for p, v in zip(shares, variances, strict=True)]
        mean = sum(mixed) / len(mixed)
        var = sum(mixed_var) / len(mixed) + sum(m * m for m in mixed) / len(mixed) - mean**2
        gain, shift = norm.weight[c].item(), norm.bias[c].item()
        result.append([(pixel - mean) / math.sqrt(var + norm.eps) * gain + shift for pixel in pixels])
    return result


def made(seed: int = 1) -> UnMixTNS:
    return UnMixTNS.from_batch_norm(source_norm(seed), components=4, batch_size=16)


def test_each_sample_is_normalised_as_published() -> None:
    norm = made()
    x = tokens(1, 5, 3, 2, 4)
    expected = [by_hand(norm, sample.flatten(1).tolist()) for sample in x]
    found = norm(x).flatten(2)
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-12
    )  # squares cancel


def test_a_call_moves_each_component_by_its_share() -> None:
    norm = made()
    before = copy.deepcopy(norm)
    x = tokens(2, 5, 3, 2, 4)
    norm(x)
    assert norm.momentum == pytest.approx(1 - 0.9**0.25, rel=1e-12)  # one power
    own, own_var = x.mean((2, 3)), x.var((2, 3), correction=0)
    cosines = nn.functional.cosine_similarity(own[:, None], before.running_means_mat[None], dim=2)
    shares = (cosines / 0.07).softmax(1)[..., None]
    moved = before.running_means_mat + norm.momentum * (shares * (own[:, None] - before.running_means_mat)).mean(0)
    torch.testing.assert_close(norm.running_means_mat, moved, rtol=1e-12, atol=1e-13)  # sums of 5
    moved = before.running_vars_mat + norm.momentum * (shares * (own_var[:, None] - before.running_vars_mat)).mean(0)
    torch.testing.assert_close(norm.running_vars_mat, moved, rtol=1e-12, atol=1e-13)  # sums of 5


def test_settled_components_make_a_call_pure() -> None:
    norm = made()
    norm.settle()
    before = copy.deepcopy(norm.state_dict())
    x = tokens(3, 5, 3, 2, 4)
    first = norm(x)
    assert torch.equal(norm(x), first)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    torch.testing.assert_close(norm(x[:1]), first[:1], rtol=1e-13, atol=1e-14)  # a product of another batch size


def test_unsettled_components_make_a_call_depend_on_those_before() -> None:
    norm = made().eval()
    x = tokens(3, 5, 3, 2, 4)
    assert not torch.equal(norm(x), norm(x))


def test_components_start_as_the_seed_says() -> None:
    source = source_norm(4)
    first, again, other = (UnMixTNS.from_batch_norm(source, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.running_means_mat, again.running_means_mat)
    assert not torch.equal(first.running_means_mat, other.running_means_mat)
    many = UnMixTNS.from_batch_norm(source, components=20000)
    total = many.running_vars_mat.mean(0) + many.running_means_mat.var(0)
    # The components together have the source's variance; 3 % is three standard errors of 20000 draws.
    torch.testing.assert_close(total, many.source_var, rtol=0.03, atol=0)


def test_one_component_starts_at_the_source() -> None:
    norm = UnMixTNS.from_batch_norm(source_norm(5), components=1)
    assert torch.equal(norm.running_means_mat[0], norm.source_mean)
    assert torch.equal(norm.running_vars_mat[0], norm.source_var)


def test_without_space_it_is_the_source_norm() -> None:
    norm = made(6)
    x = tokens(6, 5, 3)
    expected = source_norm(6)(x[..., None, None])[..., 0, 0]
    torch.testing.assert_close(norm(x), expected, rtol=1e-13, atol=1e-14)  # the same, in another order


def test_images_of_zeros_stay_finite() -> None:
    x = torch.zeros(2, 3, 4, 4, dtype=torch.float64).requires_grad_()
    norm = made()
    y = norm(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None and x.grad.isfinite().all()
    assert all(buffer.isfinite().all() for buffer in norm.buffers())


def test_state_dicts_have_the_published_names_and_come_back() -> None:
    norm, other = made(7), UnMixTNS(3, components=4, dtype=torch.float64)
    shapes = {name: tuple(value.shape) for name, value in norm.state_dict().items()}
    assert shapes == {
        "weight": (3,), "bias": (3,), "running_means_mat": (4, 3), "running_vars_mat": (4, 3),
        "source_mean": (3,), "source_var": (3,),
    }  # fmt: skip
    other.load_state_dict(norm.state_dict())
    norm.settle()
    other.settle()
    x = tokens(7, 2, 3, 4)
    other.eps = norm.eps
    assert torch.equal(norm(x), other(x))


def test_no_component_is_refused() -> None:
    with pytest.raises(UserError, match="components=0"):
        UnMixTNS(3, components=0)


def test_batch_norms_without_statistics_are_refused() -> None:
    with pytest.raises(UserError, match="statistics"):
        UnMixTNS.from_batch_norm(nn.BatchNorm2d(3, track_running_stats=False))
