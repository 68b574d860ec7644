import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowopt.errors import CaptureError
from flowopt.program.capture import capture
from flowopt.workflows.pipelines import Pipeline
from tests.program.models import Affine, Tied, TwoInputs
from tests.zoo.models import ZOO


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
        with pytest.raises(CaptureError, match=r"train mode \(train-mode\): 1\n"):
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
    kept = Pipeline("exact", skip=["fold-linear-chain"])  # which would make one layer of the two
    program = kept.run(capture(module, (torch.randn(2, 3),))).program
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
