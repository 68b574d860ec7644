"""Where ``fold-scale`` refuses, and why."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowopt.passes.fold.fold_scale import FoldScale
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.testing import assert_refuses
from tests.passes.fold.scales import WIDTH, factors
from tests.passes.programs import Written, normal, randomised

X = normal(2, 5, WIDTH)


def written(forward: object, **parts: nn.Module | Tensor) -> Written:
    """``forward`` with two linear layers called ``fc`` and ``second``."""
    layers: dict[str, nn.Module | Tensor] = {"fc": nn.Linear(WIDTH, WIDTH), "second": nn.Linear(WIDTH, WIDTH)}
    return randomised(Written(forward, **(layers | parts)))  # type: ignore[arg-type]  # callable


def refuses(code: str, forward: object, *more: Tensor, **parts: nn.Module | Tensor) -> None:
    assert_refuses(FoldScale(), written(forward, **parts), (X, *more), code=code)


def test_refuses_a_value_that_others_read_too() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        y, z, w, u = m.fc(x), m.fc(x), m.fc(x), m.fc(x)
        whole, part = u, u[..., :4]
        return [
            torch.sin(y * 3.0) + y,
            torch.sin(z.mT * 3.0) + z.mT,
            torch.sin(w[..., :8] * 3.0).sum() + w[..., 7:],
            (part * 3.0).sin(),
            whole,
        ]

    refuses("multiple-readers", forward)


def test_refuses_a_value_that_is_an_output_too() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        y = m.fc(x)
        return [y, (y * 3.0).sin()]

    refuses("multiple-readers", forward)


def test_refuses_a_value_that_is_multiplied_with_itself() -> None:
    # Scaling the layer would square the scale.
    def forward(m: Written, x: Tensor) -> Tensor:
        y = m.fc(x)
        returned: Tensor = (y @ y.mT * 3.0).sin()
        return returned

    refuses("multiple-readers", forward)


def test_refuses_a_scale_without_layers_on_both_sides() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        return [
            torch.sin(torch.relu(m.fc(x)) * 3.0),
            F.layer_norm(x * m.scale, (WIDTH,)),
            m.fc(torch.relu(x / 3.0)),
            m.fc(x * 3.0 + x),
            m.fc(x[0]) @ (x[0] * 3.0).mT,
            F.linear(x, x[0] * 3.0),
            m.fc((x * 3.0).long().float()),
            torch.sin(m.fc(x).long().float() * 3.0),
        ]

    refuses("not-linear-reader", forward, scale=factors(WIDTH))


def test_leaves_a_written_gelu_as_it_is() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        y = torch.sin(x)
        returned: Tensor = m.fc(0.5 * y * (1.0 + torch.tanh(y)))
        return returned

    refuses("not-linear-reader", forward)


def test_refuses_a_product_that_is_an_output() -> None:
    refuses("graph-output", lambda m, x: [x * 3.0, m.fc(x)])


def test_refuses_factors_of_another_axis() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        square = x[:, :, :5]
        return [
            # Row 11 of the known miscompiles: as many factors as channels, along the width.
            torch.sin(m.conv(square[:, :, :, None].expand(-1, -1, -1, 5)) * m.five),
            torch.sin(m.fc(x) * m.rows),
            torch.sin(m.fc(x) * m.table),
            m.fc(x.sin() * m.rows),
            m.fc(x.sin() * m.table),
            torch.sin(m.fc(x)[:, None].expand(-1, 4, -1, -1).transpose(1, 2).reshape(2, 20, WIDTH) * m.many),
        ]

    parts = {"five": factors(5), "rows": factors(5, 1), "table": factors(5, WIDTH), "many": factors(20, 1)}
    refuses("axis-mismatch", forward, conv=nn.Conv2d(5, 5, 1), **parts)


def test_refuses_factors_over_repeated_features() -> None:
    # Two places of one feature have two factors.
    def forward(m: Written, x: Tensor) -> Tensor:
        return torch.sin(m.fc(x).repeat_interleave(2, -1) * m.scale)

    refuses("axis-mismatch", forward, scale=factors(2 * WIDTH))


def test_refuses_an_extreme_number() -> None:
    numbers = (0.0, float("inf"), float("nan"), 1e30, 1e-30)
    refuses("extreme-scale", lambda m, x: [torch.sin(m.fc(x) * number) for number in numbers])


@pytest.mark.parametrize("weight", [3e38, 2e-38])
def test_refuses_a_weight_that_would_leave_the_range_of_its_dtype(weight: float) -> None:
    module = written(lambda m, x: torch.sin(m.fc(x) * (10.0 if weight > 1 else 0.1)))
    module.fc.weight.data[1] = weight
    assert_refuses(FoldScale(), module, (X,), code="extreme-scale")


def test_refuses_a_layer_scale_with_a_zero_factor() -> None:
    scale = factors(WIDTH)
    scale[3] = 0.0
    refuses("extreme-scale", lambda m, x: m.fc(x) * m.scale, scale=scale)


def test_refuses_a_scale_too_small_for_float16() -> None:
    module = written(lambda m, x: torch.sin(m.fc(x) * 1e-3)).half()
    assert_refuses(FoldScale(), module, (X.half(),), code="extreme-scale")


def test_refuses_to_copy_a_large_tied_table() -> None:
    module = randomised(
        Written(lambda m, ids: m.head(torch.tanh(m.table(ids) * 3.0)), table=nn.Embedding(7, 6), head=nn.Linear(6, 7))
    )
    module.head.weight = module.table.weight
    ids = torch.arange(6).reshape(2, 3)
    assert_refuses(FoldScale(max_growth=7 * 6 * 4 - 1), module, (ids,), code="grows-too-much")


def test_refuses_a_layer_whose_parameters_are_inputs() -> None:
    refuses("not-constant", lambda m, x, w: torch.sin(F.linear(x, w) * 3.0), normal(WIDTH, WIDTH))
    refuses("not-constant", lambda m, x, b: torch.sin(F.linear(x, m.fc.weight, b) * 3.0), normal(WIDTH))


def test_refuses_a_product_of_another_shape_or_dtype() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        return [m.fc(x)[:, :1] * m.rows, m.fc(x).bfloat16() * m.element]

    refuses("unsupported-spelling", forward, rows=factors(5, 1), element=factors(1))


def test_a_product_of_two_computed_values_is_no_site() -> None:
    program = capture(
        written(lambda m, x: m.fc(x) * m.second(x) + m.three / (1.0 + x.square()), three=torch.tensor(3.0)), (X,)
    )
    (record,) = run_passes(program, [FoldScale()]).records
    assert record.anchors == 0


def test_the_gain_of_a_written_norm_is_no_site() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        returned: Tensor = m.fc(m.gain * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)))
        return returned

    program = capture(written(forward, gain=factors(WIDTH)), (X,))
    assert run_passes(program, [FoldScale()]).records[0].anchors == 0
