import io
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.export import ExportedProgram

from flowopt.errors import InternalError, UserError
from flowopt.program.capture import capture
from flowopt.program.from_exported import program_from_exported
from flowopt.program.program import Program
from flowopt.program.to_exported import to_exported
from tests.program.models import Affine, Counter, TwoInputs
from tests.zoo.models import ZOO, randomise


@cache
def two_inputs() -> Program:
    dynamic = {"x": {0: "batch"}, "y": {0: "batch"}}
    return capture(TwoInputs().eval(), (torch.zeros(5, 3), torch.zeros(5, 3)), dynamic=dynamic, dims={"batch": (1, 64)})


def saved_and_loaded(program: Program) -> ExportedProgram:
    file = io.BytesIO()
    torch.export.save(to_exported(program), file)
    file.seek(0)
    return torch.export.load(file)


class TestRun:
    def test_by_position_by_name_and_mixed(self) -> None:
        program, x, y = two_inputs(), torch.randn(4, 3), torch.randn(4, 3)
        for result in (program.run(x, y), program.run(y=y, x=x), program.run(x, y=y)):
            torch.testing.assert_close(result, x + 2 * y, rtol=0, atol=0)

    @pytest.mark.parametrize(
        ("args", "kwargs", "message"),
        [
            ((torch.ones(4, 3),), {}, "missing inputs: y"),
            ((torch.ones(4, 3),) * 3, {}, "3 positional inputs, but the model takes 2"),
            ((torch.ones(4, 3),) * 2, {"z": 1}, r"unknown: z\n.*the model takes x: float32\[batch, 3\]; y"),
            ((torch.ones(4, 3),) * 2, {"y": 1}, "given twice: y"),
            (
                (torch.ones(4, 3), torch.ones(4, 3).double()),
                {},
                r"'y' is float64\[4, 3\], but the model takes y: float32",
            ),
            ((torch.ones(4, 2), torch.ones(4, 3)), {}, r"'x' is float32\[4, 2\].*x: float32\[batch, 3\]"),
            ((torch.ones(3), torch.ones(4, 3)), {}, r"'x' is float32\[3\]"),
            ((torch.ones(4, 3), torch.ones(5, 3)), {}, "dimension 'batch' is 4 in 'x' and 5 in 'y'"),
            ((torch.ones(65, 3), torch.ones(65, 3)), {}, "'batch' is 65 in 'x', but the model takes 1 to 64"),
            (("text", torch.ones(4, 3)), {}, "'x' is str, not a tensor"),
        ],
    )
    def test_refuses_inputs_that_do_not_fit(
        self, args: tuple[object, ...], kwargs: dict[str, object], message: str
    ) -> None:
        with pytest.raises(UserError, match=message):
            two_inputs().run(*args, **kwargs)

    def test_lists_of_numbers_become_tensors(self) -> None:
        program = capture(Affine().eval(), (torch.randn(1, 3),))
        assert isinstance(program.run([[1.0, 2.0, 3.0]]), Tensor)

    def test_unknown_names_have_no_shape(self) -> None:
        with pytest.raises(UserError, match="no input or output 'z'"):
            two_inputs().shape("z")


class TestCopy:
    def test_changes_of_a_copy_stay_there(self) -> None:
        program = capture(Affine().eval(), (torch.ones(2, 3),))
        copied = program.copy()
        copied.node("linear").args = (copied.node("x"), copied.node("linear").args[1])
        copied.node("linear").meta["note"] = "changed"
        copied.tensors["extra"] = torch.zeros(1)
        copied.tensors["linear.weight"] = torch.zeros(4, 3)
        assert len(program.node("linear").args) == 3
        assert "note" not in program.node("linear").meta
        assert "extra" not in program.tensors
        assert bool(program.tensors["linear.weight"].any())

    def test_a_copy_has_the_same_names_and_the_same_tensors(self) -> None:
        program = capture(Affine().eval(), (torch.ones(2, 3),))
        copied = program.copy()
        assert [n.name for n in copied.graph.nodes] == [n.name for n in program.graph.nodes]
        assert all(copied.tensors[name] is t for name, t in program.tensors.items())

    def test_the_raised_copy_computes_in_float64(self) -> None:
        program = capture(Affine().eval(), (torch.ones(2, 3),))
        twin = program.raised_copy()
        assert twin.raised and not program.raised
        assert twin.read("linear.weight").dtype is torch.float64
        assert program.read("linear.weight").dtype is torch.float32


class TestToExported:
    def test_bytes_of_an_archive_compute_the_same_and_keep_the_range(self) -> None:
        loaded = saved_and_loaded(two_inputs())
        (bounds,) = loaded.range_constraints.values()
        assert (int(bounds.lower), int(bounds.upper)) == (1, 64)
        # torch's own guards name arguments that an archive without example inputs does not keep.
        module = loaded.module(check_guards=False)
        for size in (1, 2, 64):
            x, y = torch.randn(size, 3), torch.randn(size, 3)
            torch.testing.assert_close(module(x, y), x + 2 * y, rtol=0, atol=0)

    def test_a_program_comes_back_with_its_dimensions(self) -> None:
        program = two_inputs()
        again = program_from_exported(
            saved_and_loaded(program).run_decompositions({}), {"x": {0: "batch"}}, program.provenance
        )
        assert [(d.name, d.minimum, d.maximum, d.traced) for d in again.dims] == [("batch", 1, 64, 5)]
        assert again.inputs == program.inputs
        assert [o.dtype for o in again.outputs] == [o.dtype for o in program.outputs]

    def test_state_stays_explicit(self) -> None:
        module = saved_and_loaded(capture(Counter().eval(), (torch.ones(1, 3),))).module(check_guards=False)
        found = module(torch.tensor(1), torch.zeros(4, 3), torch.ones(1, 3))
        assert int(found["state_calls.next"]) == 2
        assert torch.equal(found["state_cache.next"][1], torch.ones(3))

    def test_inputs_with_the_names_of_builtins(self) -> None:
        class Shadowing(torch.nn.Module):
            def forward(self, input: Tensor) -> Tensor:
                return input * 2

        loaded = saved_and_loaded(capture(Shadowing().eval(), (torch.ones(2),)))
        assert loaded.graph_signature.user_inputs == ("input",)

    def test_a_twin_has_no_stored_form(self) -> None:
        with pytest.raises(InternalError, match="raised"):
            to_exported(two_inputs().raised_copy())

    def test_a_zoo_model_at_both_ends_of_its_range(self) -> None:
        model = ZOO["digits-vit"]()
        randomise(model.module, seed=1)
        program = capture(model.module, (), model.kwargs, dynamic=model.dynamic, dims=model.dims)
        module = saved_and_loaded(program).module(check_guards=False)
        for size in (1, 64):
            x = torch.randn(size, 1, 8, 8, generator=torch.Generator().manual_seed(size))
            wanted = program.run(x)
            assert isinstance(wanted, Tensor)
            with torch.no_grad():
                torch.testing.assert_close(module(x), wanted, rtol=0, atol=0)
