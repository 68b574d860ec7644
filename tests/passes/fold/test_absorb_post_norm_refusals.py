"""Where ``absorb-post-norm`` refuses, and why."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowopt.passes.fold.absorb_post_norm import AbsorbPostNorm
from flowopt.testing import assert_refuses
from tests.passes.fold.affine_stacks import FrozenMap, small_then_large
from tests.passes.fold.residual import WIDTH, Block
from tests.passes.programs import Written, normal, together

X = normal(2, 4, WIDTH)


def stack(forward: Callable[..., Any], **parts: Any) -> Written:
    """Layers, blocks and maps that a forward may use."""
    torch.manual_seed(0)
    own: dict[str, Any] = {
        "entry": nn.Linear(WIDTH, WIDTH),
        "blocks": nn.ModuleList(Block() for _ in range(3)),
        "maps": nn.ModuleList(FrozenMap(WIDTH, "mul and add", 100 * i) for i in range(3)),
        "norm": nn.LayerNorm(WIDTH),
        "head": nn.Linear(WIDTH, 3),
    }
    return Written(forward, **own | parts).eval()


def post(m: Written, x: Tensor, depth: int = 3) -> list[Tensor]:
    """The values of a post-norm stack behind every map."""
    found = [m.entry(x)]
    for i in range(depth):
        found.append(m.maps[i](found[-1] + m.blocks[i](found[-1])))
    return found


def ended(m: Written, x: Tensor) -> Tensor:
    out: Tensor = m.head(post(m, x)[-1])
    return out


def test_refuses_a_scale_of_zero() -> None:
    module = stack(ended)
    module.maps[1].scale.data[2] = 0.0
    run = assert_refuses(AbsorbPostNorm(), module, (X,), code="extreme-scale")
    # The maps of a stream that stays are sites each.
    assert len(run.records[0].refused) == 3


@pytest.mark.parametrize("end", ["free", "fixed"])
def test_refuses_scales_beyond_the_range_of_the_dtype(end: str) -> None:
    # 2^-9 is out of reach even from the middle; 2^-6 is where an activation holds one end.
    module = stack(ended if end == "free" else lambda m, x: m.head(post(m, x)[-1].tanh()))
    for map_ in module.maps:
        map_.scale.data = torch.full((WIDTH,), 2.0 ** (-3 if end == "free" else -2))
    assert_refuses(AbsorbPostNorm(), module.half(), (X.half(),), code="extreme-scale")


@pytest.mark.parametrize("inverse", [800.0, 300.0])
def test_refuses_scales_that_would_make_values_of_the_stream_overflow(inverse: float) -> None:
    # Divided by the scale, the hundreds that the last block adds are beyond float16.
    module, x = small_then_large(inverse)
    assert bool(module(x).isfinite().all())
    assert_refuses(AbsorbPostNorm(), module, (x,), code="extreme-scale")


@pytest.mark.parametrize("weight", [2.0**-11, 2.0**13])
def test_refuses_parameters_that_would_leave_the_range_of_their_dtype(weight: float) -> None:
    module = stack(lambda m, x: m.head(post(m, x, 2)[-1]))
    module.maps[0].scale.data = torch.full((WIDTH,), 2.0**-8)
    module.maps[1].scale.data = torch.full((WIDTH,), 2.0**2)
    # Scales start at 2^4: read behind the map at 2^-4 of the weight, or written there at 2^4 of it.
    layer = module.blocks[1].up if weight < 1 else module.blocks[1].down
    layer.weight.data = weight * (1.0 + layer.weight.abs())
    assert_refuses(AbsorbPostNorm(), module.half(), (X.half(),), code="extreme-scale")


def test_refuses_a_sum_of_the_values_before_and_after_a_map() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        x = m.entry(x)
        out: Tensor = m.head(x + m.maps[0](x))
        return out

    assert_refuses(AbsorbPostNorm(), stack(forward), (X,), code="mixed-scale")


TAPS: dict[str, Callable[[Written, list[Tensor]], Any]] = {
    "outputs": lambda m, values: (m.head(values[3]), values[1], values[2]),
    "an output and an activation": lambda m, values: (values[3], m.head(values[1].tanh())),
    "features chosen": lambda m, values: m.head(values[3] * values[1][..., :1] * values[2][..., :1]),
    "a product of tokens": lambda m, values: m.head(values[3]) @ (values[1] @ values[2].mT).mean(-1)[:, :3, None],
}


def test_refuses_a_stream_that_something_else_reads_at_two_scales() -> None:
    module, inputs = together([(stack(tapped(end)), X) for end in TAPS.values()])
    run = assert_refuses(AbsorbPostNorm(), module, inputs, code="stream-tapped")
    assert len(run.records[0].refused) == 3 * len(TAPS)


def tapped(end: Callable[[Written, list[Tensor]], Any]) -> Callable[[Written, Tensor], Any]:
    return lambda m, x: end(m, post(m, x))


def test_refuses_an_output_of_a_stream_that_an_input_is_added_to() -> None:
    module = stack(lambda m, x: m.maps[0](x + m.blocks[0](x)))
    assert_refuses(AbsorbPostNorm(), module, (X,), code="stream-tapped")


def test_refuses_tokens_that_are_scaled_with_a_shift_that_no_writer_can_take() -> None:
    def forward(m: Written, x: Tensor, weights: Tensor) -> Tensor:
        x = m.entry(x)
        pooled = (m.maps[0](x) * weights).sum(1)
        out: Tensor = m.head(x + m.blocks[0](x)).sum(1) + m.head(pooled)
        return out

    assert_refuses(AbsorbPostNorm(), stack(forward), (X, normal(2, 4, 1)), code="stream-tapped")


def test_refuses_computed_values_that_are_added_behind_a_map() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        x = m.maps[0](x + m.blocks[0](x))
        out: Tensor = m.head(x + m.blocks[1](x).tanh())
        return out

    assert_refuses(AbsorbPostNorm(), stack(forward), (X,), code="not-linear-writer")


def test_refuses_a_shift_that_a_convolution_pads_without() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        x = m.entry(x)
        out: Tensor = m.conv(m.maps[0](x).mT) + m.head(x + m.blocks[0](x)).mT
        return out

    module = stack(forward, conv=nn.Conv1d(WIDTH, 3, 3, padding=1))
    assert_refuses(AbsorbPostNorm(), module, (X,), code="padded-reader")


def test_refuses_to_copy_more_than_it_may() -> None:
    def shared(m: Written, x: Tensor) -> Tensor:
        for map_ in m.maps:
            x = map_(x + m.blocks[0](x))
        out: Tensor = m.head(x)
        return out

    def tied(m: Written, ids: Tensor) -> Tensor:
        x = m.table(ids)
        return m.maps[0](x + m.blocks[0](x)).tanh() @ m.table.weight.T

    assert_refuses(AbsorbPostNorm(max_growth=100), stack(shared), (X,), code="grows-too-much")
    module = stack(tied, table=nn.Embedding(11, WIDTH))
    assert_refuses(AbsorbPostNorm(max_growth=100), module, (torch.arange(8).view(2, 4),), code="grows-too-much")


def test_refuses_where_as_many_maps_would_be_left() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        x = m.entry(x)
        x = x + m.blocks[0](m.norm(x))
        out: Tensor = m.head(m.norm(m.maps[0](x)))
        return out

    assert_refuses(AbsorbPostNorm(), stack(forward), (X,), code="no-gain")


def test_refuses_channels_along_two_axes() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        x = m.entry(x)
        out: Tensor = m.head(m.maps[0](x + x.mT))
        return out

    assert_refuses(AbsorbPostNorm(), stack(forward), (normal(2, WIDTH, WIDTH),), code="dynamic-shape")
