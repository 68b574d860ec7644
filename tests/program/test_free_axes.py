"""Free dimensions: named, ranged, and refused where they do not fit."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowopt.errors import CaptureError
from flowopt.program.capture import capture
from tests.program.models import Affine, Pair, Scores, TwoInputs


def test_one_name_on_two_inputs_is_one_dimension() -> None:
    dynamic = {"x": {0: "batch"}, "y": {0: "batch"}}
    program = capture(
        TwoInputs().eval(), (torch.zeros(5, 3), torch.zeros(5, 3)), dynamic=dynamic, dims={"batch": (1, 64)}
    )
    (dim,) = program.dims
    assert (dim.name, dim.minimum, dim.maximum, dim.traced) == ("batch", 1, 64, 5)
    assert program.shape("x") == program.shape("y") == program.shape("output") == ("batch", 3)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_an_example_of_size_one_does_not_fix_the_dimension(size: int) -> None:
    module = Affine().eval()
    program = capture(module, (torch.randn(1, 3),), dynamic={"x": {0: "batch"}}, dims={"batch": (1, 64)})
    x = torch.randn(size, 3)
    torch.testing.assert_close(program.run(x), module(x))


def test_examples_of_size_one_inside_containers_do_not_fix_it_either() -> None:
    class Nested(nn.Module):
        def forward(self, parts: list[Tensor], options: dict[str, Tensor]) -> Tensor:
            return parts[0] + parts[1] * options["gain"]

    program = capture(
        Nested().eval(),
        ([torch.ones(1, 3), torch.ones(1, 3)], {"gain": torch.ones(3)}),
        dynamic={"parts": [{0: "batch"}, {0: "batch"}]},
    )
    assert [i.name for i in program.inputs] == ["parts_0", "parts_1", "options_gain"]
    assert program.shape("parts_1") == ("batch", 3)
    assert program.shape("options_gain") == (3,)
    assert tuple(program.run(torch.ones(4, 3), torch.ones(4, 3), torch.ones(3)).shape) == (4, 3)  # type: ignore[union-attr]  # bare


@pytest.mark.parametrize(
    ("example", "dynamic"),
    [
        (Pair(left=torch.ones(1, 3), right=torch.ones(3)), {"left": {0: "batch"}}),
        (Pair(left=torch.ones(1, 3), right=torch.ones(3)), [{0: "batch"}, None]),
        (Scores(logits=torch.ones(1, 3), hidden=torch.ones(3)), {"logits": ["batch", None]}),
        ([torch.ones(1, 3), torch.ones(3)], [{0: "batch", 1: None}, None]),
        ((torch.ones(1, 3), torch.ones(3)), ({0: "batch"}, None)),
    ],
)
def test_containers_take_axes_by_key_or_by_position(example: Any, dynamic: Any) -> None:
    class Summing(nn.Module):
        def forward(self, x: Any) -> Tensor:
            parts: Any = (x.logits, x.hidden) if isinstance(x, Scores) else x
            result: Tensor = parts[0] + parts[1]
            return result

    program = capture(Summing().eval(), (example,), dynamic={"x": dynamic})
    assert [program.shape(i.name) for i in program.inputs] == [("batch", 3), (3,)]
    assert program.shape("output") == ("batch", 3)


def test_axes_may_be_counted_from_the_end() -> None:
    program = capture(Affine().eval(), (torch.randn(5, 3),), dynamic={"x": {-2: "batch"}})
    assert program.shape("x") == ("batch", 3)


def test_derived_sizes_are_expressions_of_names() -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x])

    program = capture(Doubled().eval(), (torch.randn(5, 3),), dynamic={"x": {0: "batch"}})
    assert program.shape("output") == ("2*batch", 3)


@pytest.mark.parametrize(
    ("dynamic", "dims", "message"),
    [
        ({"z": {0: "batch"}}, {}, r"names \['z'\], but the inputs are \['x'\]"),
        ({"x": {0: "batch"}}, {"bach": (1, 4)}, r"dims= names \['bach'\], but dynamic= uses \['batch'\]"),
        ({"x": {2: "batch"}}, {}, "axis 2 of 'x', which has 2 axes"),
        ({"x": {0: "batch size"}}, {}, "'batch size': a dimension needs a plain name"),
        ({"x": {0: "batch"}}, {"batch": (4, 2)}, "'batch' the range 4 to 2"),
        ({"x": {0: "batch"}}, {"batch": (1, 1)}, "'batch' the range 1 to 1"),
        ({"x": {0: "batch"}}, {"batch": (1, 2)}, "cannot capture Affine"),
        ({"x": {1: "features"}}, {}, "cannot capture Affine"),
        ({"x": "batch"}, {}, "not a mapping"),
        ({"x": {"0": "batch"}}, {}, "axis '0' of 'x'"),
    ],
)
def test_refuses_what_does_not_fit(dynamic: Any, dims: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(Affine().eval(), (torch.randn(5, 3),), dynamic=dynamic, dims=dims)


def test_refuses_axes_of_a_number() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: float) -> Tensor:
            return x * scale

    with pytest.raises(CaptureError, match="axes to 'scale', which is float"):
        capture(Scaled().eval(), (torch.ones(2), 2.0), dynamic={"scale": {0: "batch"}})


def test_refuses_collected_keywords_with_free_dimensions() -> None:
    class Collecting(nn.Module):
        def forward(self, x: Tensor, **rest: Tensor) -> Tensor:
            return x + rest["y"]

    example = ((torch.ones(2),), {"y": torch.ones(2)})
    assert [i.name for i in capture(Collecting().eval(), *example).inputs] == ["x", "y"]
    with pytest.raises(CaptureError, match=r"\['y'\] through \*\*rest"):
        capture(Collecting().eval(), *example, dynamic={"x": {0: "batch"}})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"gian": {0: "batch"}}, r"names \['gian'\] in 'options', which holds \['gain'\]"),
        ([None, None], "but it holds"),
    ],
)
def test_refuses_parts_that_a_container_lacks(spec: Any, message: str) -> None:
    class Keyed(nn.Module):
        def forward(self, options: dict[str, Tensor]) -> Tensor:
            return options["gain"] * 2

    with pytest.raises(CaptureError, match=message):
        capture(Keyed().eval(), ({"gain": torch.ones(3, 3)},), dynamic={"options": spec})
