"""A sampler in the four forms of its loop: the same numbers, whatever the form, the batch and the runtime's level."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir
import pytest
import torch
from torch import Tensor

from flowopt.ir.float64 import raised_tensor
from flowopt.ir.loop_spec import Form
from flowopt.lowering.onnx import sampler
from flowopt.program.program import Program
from flowopt.program.sampler_program import SamplerProgram
from flowopt.runtime.onnx_session import Level
from tests.lowering.build_sampler import build_sampler, exported_once, one_export
from tests.lowering.sampler_programs import SAMPLERS, inputs, mlp

__all__ = ["one_export"]

FORMS: tuple[Form, ...] = ("scan", "loop", "function", "copies")
LEVELS: tuple[Level, ...] = ("disabled", "all")
SIZES = ({"batch": 1, "length": 1, "words": 2}, {"batch": 5, "length": 6, "words": 3})
# float32 against the program itself: the kernels sum in another order.
TOLERANCE = 1e-5
# Between the forms: ONNX Runtime may fuse other nodes in each.
BETWEEN_FORMS = 1e-6

pytestmark = pytest.mark.usefixtures("one_export")


def named(result: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    return {"": result} if isinstance(result, Tensor) else result


def require_close(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor], tolerance: float) -> None:
    """Within a part of the largest number of each output."""
    assert list(got) == list(wanted)
    for name, value in got.items():
        assert value.shape == wanted[name].shape
        reference = wanted[name].double()
        error = float((value.double() - reference).abs().max() / reference.abs().max().clamp(min=1e-3))
        assert error <= tolerance, f"{name}: {error:.1e}"


def require_agreement(program: SamplerProgram, folder: Path) -> None:
    """Every form at every level agrees with the program, with its float64 twin, and with the first form."""
    feeds = [inputs(program, sizes) for sizes in SIZES]
    wanted = [named(program.run(**feed)) for feed in feeds]
    twin = program.raised_copy()
    exact = [twin.run_named({name: raised_tensor(value) for name, value in feed.items()}) for feed in feeds]
    first: dict[int, dict[str, Tensor]] = {}
    for form in FORMS:
        for level in LEVELS:
            built = build_sampler(program, folder / f"{form}-{level}", form, level=level)
            assert built.lowered.form == form
            for index, feed in enumerate(feeds):
                got = named(built.artifact.run(**feed))
                assert [t.dtype for t in got.values()] == [t.dtype for t in wanted[index].values()]
                require_close(got, wanted[index], TOLERANCE)
                require_close(got, dict(zip(got, exact[index].values(), strict=True)), TOLERANCE)
                require_close(got, first.setdefault(index, got), BETWEEN_FORMS)


@pytest.mark.parametrize(
    ("name", "steps"),
    [(name, steps) for name in sorted(SAMPLERS) for steps in (1, 2, 7) if (name, steps) != ("conv", 2)],
)
def test_every_form_computes_what_the_sampler_computes(tmp_path: Path, name: str, steps: int) -> None:
    require_agreement(SAMPLERS[name](steps), tmp_path)


def test_fifty_steps_agree_in_every_form(tmp_path: Path) -> None:
    require_agreement(mlp(50), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attention", "conv", "odd"])
def test_fifty_steps_of_every_network_agree(tmp_path: Path, name: str) -> None:
    require_agreement(SAMPLERS[name](50), tmp_path)


@pytest.mark.parametrize("name", ["attention", "mlp"])
def test_every_row_of_a_table_counts(tmp_path: Path, name: str) -> None:
    program = SAMPLERS[name](3)
    feed = inputs(program, SIZES[1])
    results = []
    for form in FORMS:
        artifact = build_sampler(program, tmp_path / form, form).artifact
        results.append(next(iter(named(artifact.run(**feed)).values())))
    for table in program.loop.tables.values():
        if not table.any():
            continue
        with_other_rows = SAMPLERS[name](3)
        tables = {n: t.flip(0) if t is table else t for n, t in program.loop.tables.items()}
        object.__setattr__(with_other_rows.loop, "tables", tables)
        wanted = next(iter(named(with_other_rows.run(**feed)).values()))
        for result in results:
            assert not torch.allclose(result, wanted, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_operators_of_another_domain_run_in_every_form(
    tmp_path: Path, form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_contributed(program: Program, *, opset: int, fuses: bool) -> tuple[Any, tuple[str, ...]]:
        model, names = exported_once(program, opset=opset, fuses=fuses)
        for node in list(model.graph):
            if node.op_type == "Tanh":
                other = onnx_ir.node("Gelu", [node.inputs[0]], domain="com.microsoft", name=node.name)
                model.graph.insert_before(node, other)
                node.outputs[0].replace_all_uses_with(other.outputs[0])
                model.graph.remove(node, safe=True)
                model.graph.opset_imports["com.microsoft"] = 1
        return model, names

    program = mlp(3)
    feed = inputs(program, SIZES[1])
    plain = build_sampler(program, tmp_path / "plain", form).artifact.run(**feed)
    monkeypatch.setattr(sampler, "onnx_model", with_contributed)
    built = build_sampler(program, tmp_path / "other", form)
    assert "com.microsoft::Gelu" in built.lowered.op_census
    other = built.artifact.run(**feed)
    first = build_sampler(program, tmp_path / "first", "copies").artifact.run(**feed)
    require_close(named(other), named(first), BETWEEN_FORMS)
    assert isinstance(other, Tensor) and isinstance(plain, Tensor) and not torch.allclose(other, plain, atol=1e-3)


@pytest.mark.slow
def test_without_fused_operators_the_forms_agree_too(tmp_path: Path) -> None:
    program = SAMPLERS["attention"](2)
    feed = inputs(program, SIZES[1])
    wanted = named(program.run(**feed))
    for form in FORMS:
        built = build_sampler(program, tmp_path / form, form, fuses=False)
        require_close(named(built.artifact.run(**feed)), wanted, TOLERANCE)
