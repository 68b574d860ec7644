"""Each feature map against the formula of its paper, pair by pair."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.ops.attention import linearization
from flowopt.ops.attention.cosformer_features import CosformerFeatures
from flowopt.ops.attention.favor_features import FavorFeatures
from flowopt.ops.attention.hedgehog_features import HedgehogFeatures
from flowopt.ops.attention.linear_attention import LinearAttention
from tests.ops.attention.random_attention import attention_shape, random_attention, random_tokens

SCALE = 0.4


def by_pairs(weight: Callable[[int, int], Tensor], value: Tensor, length: int) -> Tensor:
    """Causal attention of the weights (B, H) of query i and key j, one query after the other."""
    rows = []
    for i in range(length):
        weights = torch.stack([weight(i, j) for j in range(i + 1)], -1)
        rows.append((weights[..., None] * value[:, :, : i + 1]).sum(2) / weights.sum(-1, keepdim=True))
    return torch.stack(rows, 2)


def both_signs(x: Tensor) -> Tensor:
    return torch.cat([y.exp() / y.exp().sum(-1, keepdim=True) for y in (x, -x)], -1)


def features_of(name: str, q: Tensor, k: Tensor, module: LinearAttention) -> tuple[Tensor, Tensor]:
    parameters = dict(module.feature_map.named_parameters())
    if name == "elu":
        return torch.where(q > 0, q + 1, q.exp()), torch.where(k > 0, k + 1, k.exp())
    if name == "relu":
        return q.clamp(min=0), k.clamp(min=0)
    q, k = q @ parameters["query_weight"], k @ parameters["key_weight"]
    if name == "t2r":
        return (q + parameters["query_bias"]).clamp(min=0), (k + parameters["key_bias"]).clamp(min=0)
    return both_signs(q), both_signs(k)


@pytest.mark.parametrize("name", ["elu", "relu", "hedgehog", "t2r"])
@torch.no_grad()
def test_weights_are_products_of_features(name: str) -> None:
    module = random_attention(name, attention_shape(True))
    assert isinstance(module, LinearAttention)
    query, key, value = random_tokens(1, 9)
    key = key.abs() + 1
    q, k = features_of(name, query * SCALE**0.5, key * SCALE**0.5, module)
    expected = by_pairs(lambda i, j: (q[:, :, i] * k[:, :, j]).sum(-1), value, 9)
    assert (module(query, key, value) - expected).abs().max() < 1e-12  # sums of 16 products


def test_cosformer_weighs_by_the_cosine_of_the_distance() -> None:
    query, key, value = random_tokens(2, 9)
    query, key = query.abs(), key.abs()
    module = random_attention("cosformer", attention_shape(True), length=12)

    def weight(i: int, j: int) -> Tensor:
        return SCALE * (query[:, :, i] * key[:, :, j]).sum(-1) * math.cos(math.pi / 2 * (i - j) / 12)

    assert (module(query, key, value) - by_pairs(weight, value, 9)).abs().max() < 1e-12  # sums of 16 products


def test_cosformer_gives_no_negative_weight_beyond_its_length() -> None:
    features = CosformerFeatures(attention_shape(True), length=4)
    position = torch.arange(1.0, 20)[:, None]
    x = torch.rand(1, 2, 19, 8)
    found = features.query_features(x, position) @ features.key_features(x, position).transpose(-1, -2)
    assert found.min() > -1e-6  # a cosine of 90 degrees


def test_favor_approaches_the_exponential_with_many_directions() -> None:
    query, key, value = random_tokens(3, 40)
    query, key = query / 2, key / 2
    exact = (SCALE * query @ key.transpose(-1, -2)).softmax(-1) @ value

    def error(directions: int) -> float:
        module = random_attention("favor", attention_shape(False), directions=directions)
        return ((module(query, key, value) - exact).norm() / exact.norm()).item()

    # The variance of a weight is about exp(|q + k|^2) / directions, and |q + k|^2 about 1.6.
    assert error(16384) < 0.03 < error(64)


def test_the_directions_of_favor_are_orthogonal_and_of_gaussian_length() -> None:
    features = FavorFeatures(attention_shape(True), directions=4000).double()
    block = features.projection[:8]
    products = block @ block.T
    assert (products - products.diag().diag()).abs().max() < 1e-5  # stored in float32
    # The mean of 4000 squared lengths with a standard deviation of 4.
    assert abs(features.projection.square().sum(1).mean().item() - 8) < 0.3  # almost five of the mean


def test_the_directions_of_favor_are_constant() -> None:
    one, same, other = (FavorFeatures(attention_shape(True), seed=seed).projection for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.shape == (17, 8)  # 8 ln 8 = 16.6


def test_favor_stays_finite_for_keys_as_long_as_its_directions() -> None:
    shape = attention_shape(True)
    features = FavorFeatures(shape, directions=8)
    with torch.no_grad():
        features.projection.mul_(20)
    module = LinearAttention(shape, feature_map=features)
    query, _, value = (x.float() for x in random_tokens(4, 8))
    key = features.projection.expand(2, 2, 8, 8) / SCALE**0.5
    assert module(query, key, value).isfinite().all()


def test_hedgehog_maps_queries_and_keys_by_weights_of_their_own() -> None:
    query, key, value = random_tokens(5, 9)
    module = linearization("hedgehog")(attention_shape(True)).double()
    assert isinstance(module, LinearAttention)
    features = module.feature_map
    assert isinstance(features, HedgehogFeatures)
    found = [module(query, key, value)]
    for weight in (features.query_weight, features.key_weight):
        for head in range(2):
            with torch.no_grad():
                weight[head] *= -0.5
            found.append(module(query, key, value))
            moved = (found[-1] - found[-2]).abs().amax((0, 2, 3))
            assert moved[head] > 1e-4
            assert moved[1 - head] == 0


@pytest.mark.parametrize(("name", "options"), [("favor", {"directions": 0}), ("cosformer", {"length": 0})])
def test_sizes_of_feature_maps_are_positive(name: str, options: dict[str, int]) -> None:
    with pytest.raises(UserError, match="positive"):
        linearization(name)(attention_shape(True), **options)
