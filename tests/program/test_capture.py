import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowopt.errors import CaptureError
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.workflows.pipelines import Pipeline
from tests.program.models import Affine, Counter, DriftingNorm, Tied, TwoInputs
from tests.zoo.models import ZOO, randomise


def values(program: Program, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    """Outputs by name, also of a program with one bare output."""
    return program.run_named(program.bind(args, kwargs))


def test_computes_what_the_module_computes() -> None:
    module, x = Affine().eval(), torch.randn(2, 3)
    torch.testing.assert_close(capture(module, (x,)).run(x), module(x), rtol=0, atol=0)


def test_constants_among_the_inputs_are_part_of_the_graph() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: float, flag: bool, mask: Tensor | None, y: Tensor) -> Tensor:
            return x * scale + (y if flag else 0) + (0 if mask is None else mask)

    x, y = torch.randn(2, 3), torch.randn(2, 3)
    program = capture(Scaled().eval(), (x, 3.0), {"flag": True, "mask": None, "y": y})
    assert [i.name for i in program.inputs] == ["x", "y"]
    torch.testing.assert_close(program.run(x, y), x * 3.0 + y, rtol=0, atol=0)


def test_the_order_of_inputs_is_that_of_forward() -> None:
    program = capture(TwoInputs().eval(), (), {"y": torch.zeros(2), "x": torch.ones(2)})
    assert [i.name for i in program.inputs] == ["x", "y"]


@pytest.mark.parametrize("dynamic", [{}, {"x": {0: "batch"}, "y": {0: "batch"}}])
def test_one_tensor_given_for_two_inputs_stays_two_inputs(dynamic: Any) -> None:
    same = torch.ones(5, 3)
    program = capture(TwoInputs().eval(), (same, same), dynamic=dynamic)
    x, y = torch.randn(5, 3), torch.randn(5, 3)
    torch.testing.assert_close(program.run(x, y), x + 2 * y, rtol=0, atol=0)


def test_a_weight_given_as_an_input_stays_an_input() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((3,), 2.0))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight

    module = Weighted().eval()
    program = capture(module, (module.weight,))
    torch.testing.assert_close(program.run(torch.ones(3)), torch.full((3,), 2.0), rtol=0, atol=0)


@pytest.mark.parametrize("by_name", [False, True])
def test_inputs_keep_the_names_of_builtins(by_name: bool) -> None:
    class Shadowing(nn.Module):
        def forward(self, input: Tensor, id: Tensor) -> Tensor:
            return input - id

    x, y = torch.randn(2, 3), torch.randn(2, 3)
    program = capture(Shadowing().eval(), () if by_name else (x, y), {"input": x, "id": y} if by_name else {}).copy()
    assert [i.name for i in program.inputs] == ["input", "id"]
    assert list(program.example) == ["input", "id"]
    torch.testing.assert_close(program.run(input=x, id=y), x - y, rtol=0, atol=0)


class TestState:
    def test_a_mutated_buffer_is_an_input_with_a_default_and_an_output(self) -> None:
        program = capture(Counter().eval(), (torch.ones(1, 3),))
        assert [(i.name, i.state) for i in program.inputs] == [
            ("state_calls", "calls"),
            ("state_cache", "cache"),
            ("x", None),
        ]
        assert [(o.name, o.state) for o in program.outputs] == [
            ("output", None),
            ("state_calls.next", "calls"),
            ("state_cache.next", "cache"),
        ]
        assert torch.equal(program.tensors["cache"], torch.full((4, 3), 0.5))

    def test_capture_does_not_run_the_mutation(self) -> None:
        module = Counter().eval()
        capture(module, (torch.ones(1, 3),))
        assert int(module.calls) == 0
        assert torch.equal(module.cache, torch.full((4, 3), 0.5))

    def test_three_steps_agree_with_the_module(self) -> None:
        module = Counter().eval()
        program = Pipeline("exact").run(capture(module, (torch.ones(1, 3),))).program
        state: dict[str, Tensor] = {}
        for step in range(3):
            x = torch.full((1, 3), float(step + 1))
            found = values(program, x, **state)
            torch.testing.assert_close(found["output"], module(x), rtol=0, atol=0)
            state = {name: found[f"{name}.next"] for name in ("state_calls", "state_cache")}
        assert torch.equal(state["state_cache"], module.cache)

    def test_the_stored_default_stays_after_a_run(self) -> None:
        program = capture(Counter().eval(), (torch.ones(1, 3),))
        for _ in range(2):
            assert int(values(program, torch.ones(1, 3))["state_calls.next"]) == 1

    def test_state_is_never_folded(self) -> None:
        module = DriftingNorm()
        randomise(module, seed=0)
        x = torch.randn(2, 2, 4, 4)
        run = Pipeline("exact").run(capture(module.eval(), (x,)))
        record = next(r for r in run.records if r.name == "fold-batch-norm")
        assert record.refusal_counts == {"not-constant": 1}
        state: dict[str, Tensor] = {}
        for _ in range(2):
            found = values(run.program, x, **state)
            torch.testing.assert_close(found["output"], module(x), rtol=0, atol=0)
            state = {"state_norm_running_mean": found["state_norm_running_mean.next"]}

    def test_names_of_state_leave_the_names_of_inputs_alone(self) -> None:
        class Clash(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.total: Tensor
                self.register_buffer("total", torch.zeros(3))

            def forward(self, state_total: Tensor) -> Tensor:
                self.total.add_(state_total)
                return self.total * 2

        program = capture(Clash().eval(), (torch.ones(3),))
        assert [i.name for i in program.inputs] == ["state_total_", "state_total"]
        assert [o.name for o in program.outputs] == ["output", "state_total_.next"]
        torch.testing.assert_close(values(program, torch.ones(3))["output"], torch.full((3,), 2.0), rtol=0, atol=0)

    def test_two_buffers_with_one_spelling_stay_apart(self) -> None:
        class Alike(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a = nn.Module()
                self.a_b: Tensor
                self.a.register_buffer("b", torch.zeros(3))
                self.register_buffer("a_b", torch.ones(3))

            def forward(self, x: Tensor) -> Tensor:
                inner = self.a.get_buffer("b")
                inner.add_(x)
                self.a_b.mul_(2.0)
                return inner + self.a_b

        program = capture(Alike().eval(), (torch.ones(3),))
        names = [o.name for o in program.outputs]
        assert len(set(names)) == 3
        found = values(program, torch.ones(3))
        by_state = {o.state: found[o.name] for o in program.outputs}
        assert torch.equal(by_state["a.b"], torch.ones(3))
        assert torch.equal(by_state["a_b"], torch.full((3,), 2.0))

    def test_a_mutated_input_gains_an_output(self) -> None:
        class InPlace(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                x.add_(1.0)
                return x * 2

        program = capture(InPlace().eval(), (torch.zeros(2),))
        assert [(o.name, o.state) for o in program.outputs] == [("output", None), ("x.next", "x")]
        x = torch.zeros(2)
        found = values(program, x)
        assert torch.equal(found["x.next"], torch.ones(2))
        assert torch.equal(x, torch.zeros(2))


def test_tied_weights_are_stored_once() -> None:
    program = capture(Tied().eval(), (torch.randn(2, 3),))
    assert sorted(program.tensors) == ["first.bias", "first.weight", "second.bias"]
    assert program.parameter_bytes == (9 + 3 + 3) * 4


def test_an_output_may_occur_twice_and_may_be_an_input_or_a_parameter() -> None:
    class Passing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.full((3,), 2.0))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = x * self.gain
            return {"first": y, "again": y, "x": x, "gain": self.gain}

    x = torch.ones(3)
    program = capture(Passing().eval(), (x,))
    found = Pipeline("exact").run(program).program.run(x)
    assert isinstance(found, dict)
    assert {name: float(v[0]) for name, v in found.items()} == {"first": 2.0, "again": 2.0, "x": 1.0, "gain": 2.0}
    assert program.output_shapes() == ((3,), (3,), (3,), (3,))


class TestMode:
    def test_train_mode_is_refused(self) -> None:
        with pytest.raises(CaptureError, match="train mode.*linear") as caught:
            capture(Affine(), (torch.randn(2, 3),))
        assert "model.eval()" in caught.value.hint

    def test_one_part_in_train_mode_is_named(self) -> None:
        module = nn.Sequential(nn.Linear(3, 3), nn.Dropout()).eval()
        module[1].train()
        with pytest.raises(CaptureError, match="train mode: 1\n"):
            capture(module, (torch.randn(2, 3),))

    def test_eval_mode_captures_eval_and_leaves_every_mode(self) -> None:
        module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.BatchNorm1d(3))
        module[1].eval()
        program = capture(module, (torch.randn(4, 3),), eval_mode=True)
        assert [m.training for m in module.modules()] == [True, True, False, True]
        x = torch.randn(4, 3)
        torch.testing.assert_close(program.run(x), copy.deepcopy(module).eval()(x), rtol=0, atol=0)

    def test_modes_come_back_after_a_failed_capture(self) -> None:
        class Branching(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x if bool(x.sum() > 0) else -x

        module = Branching()
        with pytest.raises(CaptureError):
            capture(module, (torch.ones(2),), eval_mode=True)
        assert module.training


class TestDimensions:
    def test_one_name_on_two_inputs_is_one_dimension(self) -> None:
        dynamic = {"x": {0: "batch"}, "y": {0: "batch"}}
        program = capture(
            TwoInputs().eval(), (torch.zeros(5, 3), torch.zeros(5, 3)), dynamic=dynamic, dims={"batch": (1, 64)}
        )
        (dim,) = program.dims
        assert (dim.name, dim.minimum, dim.maximum, dim.traced) == ("batch", 1, 64, 5)
        assert program.shape("x") == program.shape("y") == program.shape("output") == ("batch", 3)

    @pytest.mark.parametrize("size", [1, 2, 7, 64])
    def test_an_example_of_size_one_does_not_fix_the_dimension(self, size: int) -> None:
        module = Affine().eval()
        program = capture(module, (torch.randn(1, 3),), dynamic={"x": {0: "batch"}}, dims={"batch": (1, 64)})
        x = torch.randn(size, 3)
        torch.testing.assert_close(program.run(x), module(x))

    def test_examples_of_size_one_inside_containers_do_not_fix_it_either(self) -> None:
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

    def test_axes_may_be_counted_from_the_end(self) -> None:
        program = capture(Affine().eval(), (torch.randn(5, 3),), dynamic={"x": {-2: "batch"}})
        assert program.shape("x") == ("batch", 3)

    def test_derived_sizes_are_expressions_of_names(self) -> None:
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
        ],
    )
    def test_refuses_what_does_not_fit(self, dynamic: Any, dims: Any, message: str) -> None:
        with pytest.raises(CaptureError, match=message):
            capture(Affine().eval(), (torch.randn(5, 3),), dynamic=dynamic, dims=dims)

    def test_refuses_axes_of_a_number(self) -> None:
        class Scaled(nn.Module):
            def forward(self, x: Tensor, scale: float) -> Tensor:
                return x * scale

        with pytest.raises(CaptureError, match="axes to 'scale', which is float"):
            capture(Scaled().eval(), (torch.ones(2), 2.0), dynamic={"scale": {0: "batch"}})

    def test_refuses_collected_keywords_with_free_dimensions(self) -> None:
        class Collecting(nn.Module):
            def forward(self, x: Tensor, **rest: Tensor) -> Tensor:
                return x + rest["y"]

        example = ((torch.ones(2),), {"y": torch.ones(2)})
        assert [i.name for i in capture(Collecting().eval(), *example).inputs] == ["x", "y"]
        with pytest.raises(CaptureError, match=r"\['y'\] through \*\*rest"):
            capture(Collecting().eval(), *example, dynamic={"x": {0: "batch"}})


class TestRefusals:
    def test_control_flow_names_the_users_line(self) -> None:
        class Choosing(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.cond(x.sum() > 0, lambda a: a + 1, lambda a: a - 1, (x,))

        with pytest.raises(CaptureError, match="control flow") as caught:
            capture(Choosing().eval(), (torch.ones(2),))
        assert "program/test_capture.py:" in caught.value.why
        assert "return torch.cond(x.sum() > 0" in caught.value.why
        assert not caught.value.why.startswith("/")

    def test_branching_on_data_says_what_torch_says(self) -> None:
        class Branching(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x if bool(x.sum() > 0) else -x

        with pytest.raises(CaptureError, match="torch.export cannot capture Branching") as caught:
            capture(Branching().eval(), (torch.ones(2),))
        assert caught.value.exit_code == 2
        assert caught.value.__cause__ is not None

    def test_a_size_as_output(self) -> None:
        class Sized(nn.Module):
            def forward(self, x: Tensor) -> tuple[Tensor, int]:
                return x * 2, x.shape[0]

        with pytest.raises(CaptureError, match="not a tensor"):
            capture(Sized().eval(), (torch.ones(3, 2),), dynamic={"x": {0: "batch"}})

    def test_no_tensor_at_all(self) -> None:
        class Three(nn.Module):
            def forward(self, x: Tensor) -> int:
                return 3

        with pytest.raises(CaptureError, match="returns no tensor"):
            capture(Three().eval(), (torch.ones(3),))

    @pytest.mark.parametrize("given", [torch.ones(2, 3), {"x": torch.ones(2, 3)}])
    def test_inputs_without_a_tuple(self, given: Any) -> None:
        with pytest.raises(CaptureError, match="not a tuple of inputs"):
            capture(Affine().eval(), given)

    def test_missing_inputs(self) -> None:
        with pytest.raises(CaptureError, match="Affine.forward: missing a required argument: 'x'"):
            capture(Affine().eval())


@pytest.mark.parametrize("name", [pytest.param("bert", marks=pytest.mark.slow), "digits-vit"])
def test_no_absolute_path_is_left_in_the_metadata(name: str) -> None:
    model = ZOO[name]()
    program = capture(model.module, (), model.kwargs, dynamic=model.dynamic, dims=model.dims)
    traces = [n.meta["stack_trace"] for n in program.graph.nodes if "stack_trace" in n.meta]
    assert traces
    assert not [t for t in traces if 'File "/' in t or ":\\" in t]
    everything = "".join(str(n.meta) for n in program.graph.nodes)
    for folder in (str(torch.__file__).rsplit("/", 3)[0], __file__.rsplit("/", 3)[0]):
        assert folder not in everything


def test_the_callers_module_is_unchanged() -> None:
    module = Tied().eval()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    attributes = set(vars(module))
    program = Pipeline("exact").run(capture(module, (torch.randn(2, 3),))).program
    assert program.tensors["first.weight"].data_ptr() == module.first.weight.data_ptr()
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())
    assert all(p.requires_grad for p in module.parameters())
    assert set(vars(module)) == attributes


def test_random_operators_are_kept() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    program = capture(Noisy().eval(), (torch.zeros(64),))
    torch.manual_seed(0)
    first, second = program.run(torch.zeros(64)), program.run(torch.zeros(64))
    assert isinstance(first, Tensor) and isinstance(second, Tensor)
    assert not torch.equal(first, second)
