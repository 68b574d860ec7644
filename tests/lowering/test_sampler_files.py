"""What the file of a sampler holds: names, weights once, the same bytes, and nothing of the machine."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from flowopt.errors import InternalError, UserError
from flowopt.formats.digest import file_sha256
from flowopt.ir.loop_spec import Form, LoopSpec
from flowopt.lowering.onnx.sampler import Device, chosen_form
from flowopt.program.sampler_program import SamplerProgram
from flowopt.runtime.artifact import Artifact
from tests.lowering.build_sampler import build_sampler, one_export
from tests.lowering.sampler_programs import attention, conv, inputs, mlp, odd, part
from tests.lowering.test_sampler_forms import FORMS

__all__ = ["one_export"]

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path
import torch
from tests.lowering.build_sampler import build_sampler
from tests.lowering.sampler_programs import SAMPLERS
torch.manual_seed(0)
for form in ("scan", "loop", "function", "copies"):
    build_sampler(SAMPLERS[sys.argv[1]](3), Path(sys.argv[2]) / form, form)
"""

pytestmark = pytest.mark.usefixtures("one_export")


def model_of(folder: Path) -> Any:
    return onnx.load(str(folder / "model.onnx"), load_external_data=False)


def shape_of(value: Any) -> list[str | int]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def nodes_of(graph: Any) -> list[Any]:
    found = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += nodes_of(attribute.g)
    return found


@pytest.mark.parametrize("form", FORMS)
def test_inputs_outputs_and_dimensions_have_the_samplers_names(tmp_path: Path, form: Form) -> None:
    folder = build_sampler(attention(3), tmp_path / "a", form).folder
    graph = model_of(folder).graph
    wanted = [("noise", ["batch", "length", 32]), ("text", ["batch", "words", 24])]
    assert [(i.name, shape_of(i)) for i in graph.input] == wanted
    assert [(o.name, shape_of(o)) for o in graph.output] == [("image", ["batch", "length", 16])]


@pytest.mark.parametrize("form", FORMS)
def test_an_output_may_have_an_inputs_name(tmp_path: Path, form: Form) -> None:
    program = conv(1)
    built = build_sampler(program, tmp_path / "a", form)
    assert [o.name for o in model_of(built.folder).graph.output] == ["x.output", "bright"]
    result = built.artifact.run(**inputs(program, {"batch": 2}))
    assert isinstance(result, dict) and list(result) == ["x", "bright"]


@pytest.mark.parametrize("form", FORMS)
def test_an_input_that_nothing_reads_stays(tmp_path: Path, form: Form) -> None:
    program = mlp(2)
    built = build_sampler(program, tmp_path / "a", form)
    # The step ignores ``spare``: its table is not stored. What the sampler takes is what it says.
    assert not [t.name for t in model_of(built.folder).graph.initializer if t.name.startswith("spare")]
    assert [i.name for i in built.artifact.inputs] == ["noise", "label"]


@pytest.mark.parametrize("form", FORMS)
def test_the_file_is_valid_and_holds_no_path(tmp_path: Path, form: Form) -> None:
    for name, make in (("mlp", mlp), ("odd", odd), ("attention", attention)):
        folder = build_sampler(make(3), tmp_path / name, form).folder
        onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
        for file in folder.iterdir():
            content = file.read_bytes()
            for text in (str(tmp_path), str(ROOT), "site-packages", ".py"):
                assert text.encode() not in content, f"{text} in {file.name}"


@pytest.mark.parametrize("form", FORMS)
def test_nodes_name_the_part_and_the_node_that_they_came_from(tmp_path: Path, form: Form) -> None:
    program = mlp(2)
    model = model_of(build_sampler(program, tmp_path / "a", form).folder)
    nodes = [*nodes_of(model.graph), *(node for function in model.functions for node in function.node)]
    named = {p.value for node in nodes for p in node.metadata_props if p.key == "flowopt.node"}
    parts = {"prologue": program.prologue, "step": program.step, "epilogue": program.epilogue}
    known = {f"{name}/{node.name}" for name, one in parts.items() for node in one.graph.nodes}
    assert named <= known
    assert {"step/tanh", "epilogue/clamp", "prologue/linear"} <= named


def test_weights_are_stored_once_in_every_form(tmp_path: Path) -> None:
    program = mlp(20)
    large = [t for p in (program.prologue, program.step) for t in p.tensors.values() if t.nbytes >= 1024]
    weights = sum(tensor.nbytes for tensor in large)
    row = program.loop.tables["row"]
    for form in FORMS:
        built = build_sampler(program, tmp_path / form, form)
        # Rows of 192 bytes lie in the model file; a table of 3,840 beside it.
        tables = row.nbytes if form in ("scan", "loop") else 0
        assert built.weight_bytes == weights + tables
        assert (built.folder / built.lowered.weights[0]).name == built.lowered.weights[0]


def test_a_files_size_hardly_depends_on_the_steps_but_for_copies(tmp_path: Path) -> None:
    growth = {}
    for form in FORMS:
        small, large = (build_sampler(attention(n), tmp_path / f"{form}{n}", form) for n in (5, 50))
        growth[form] = (large.model_bytes + large.weight_bytes - small.model_bytes - small.weight_bytes) / 45
    rows = 97 * 4
    assert growth["scan"] < rows + 8 and growth["loop"] < rows + 8
    # A call names its inputs; a row is an initializer with a name and a shape.
    assert growth["function"] < rows + 400
    assert growth["copies"] > 3000


class Shared(nn.Module):
    """Used by the prologue and by the step, with one table."""

    def __init__(self, table: nn.Parameter) -> None:
        super().__init__()
        self.table = table

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"x": x + self.table}


def test_a_weight_of_two_parts_is_one_initializer(tmp_path: Path) -> None:
    module, x = Shared(nn.Parameter(torch.zeros(20, 20))), torch.randn(20, 20)
    prologue, step, epilogue = (part(module, {"x": x}, {}, 1) for _ in range(3))
    program = SamplerProgram(prologue, step, LoopSpec(3, ("x",)), epilogue)
    for form in FORMS:
        built = build_sampler(program, tmp_path / form, form)
        assert built.weight_bytes == 1600
        large = [t for t in model_of(built.folder).graph.initializer if list(t.dims) == [20, 20]]
        assert len(large) == 1
        result = built.artifact.run(x=x)
        assert isinstance(result, dict)
        torch.testing.assert_close(result["x"], x + 5 * module.table.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_the_same_sampler_gives_the_same_bytes_in_another_folder(tmp_path: Path, form: Form) -> None:
    folders = [build_sampler(attention(3), tmp_path / name, form).folder for name in ("a", "longer")]
    first, second = ({f.name: f.read_bytes() for f in folder.iterdir()} for folder in folders)
    assert first == second


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attention", "conv", "mlp", "odd"])
def test_files_are_equal_across_processes_and_hash_seeds(tmp_path: Path, name: str) -> None:
    found = []
    for folder, seed, threads in (("a", "1", "1"), ("longer", "77", "2")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads}
        command = [sys.executable, "-c", SCRIPT, name, str(tmp_path / folder)]
        subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True)
        files = sorted((tmp_path / folder).rglob("*"))
        found.append({str(f.relative_to(tmp_path / folder)): file_sha256(f) for f in files if f.is_file()})
    assert found[0] == found[1] and "scan/model.onnx" in found[0]


@pytest.mark.parametrize("form", FORMS)
def test_a_wrong_shape_is_refused_in_words(tmp_path: Path, form: Form) -> None:
    artifact = build_sampler(mlp(2), tmp_path / "a", form).artifact
    with pytest.raises(UserError, match=r"noise: float32\[batch, 8\]"):
        artifact.run(noise=torch.randn(2, 9), label=torch.tensor([1, 2]))
    with pytest.raises(UserError, match="dimension 'batch' is 2 in 'noise' and 3 in 'label'"):
        artifact.run(noise=torch.randn(2, 8), label=torch.tensor([1, 2, 3]))


def test_without_a_report_the_model_says_what_it_takes(tmp_path: Path) -> None:
    program = mlp(7)
    built = build_sampler(program, tmp_path / "a", "scan")
    (built.folder / "report.json").unlink()
    artifact = Artifact.open(built.folder)
    assert artifact.inputs == program.interface.inputs and artifact.dims == program.interface.dims
    feed = inputs(program, {"batch": 3})
    result, wanted = artifact.run(feed["noise"], feed["label"]), program.run(**feed)
    assert isinstance(result, Tensor) and isinstance(wanted, Tensor)
    torch.testing.assert_close(result, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("steps", "form", "device", "taken"),
    [
        (4, "auto", "cpu", "copies"),
        (5, "auto", "cpu", "scan"),
        (1000, "auto", "cpu", "scan"),
        (4, "auto", "cuda", "copies"),
        (5, "auto", "cuda", "function"),
        (1000, "auto", "cuda", "scan"),
        (1000, "copies", "cuda", "copies"),
    ],
)
def test_auto_chooses_by_steps_and_device(steps: int, form: Form, device: Device, taken: Form) -> None:
    assert chosen_form(LoopSpec(steps, ("x",)), form, device) == taken


def test_the_loop_may_ask_for_its_form(tmp_path: Path) -> None:
    program = mlp(2)
    wanted = dataclasses.replace(program, loop=dataclasses.replace(program.loop, form="loop"))
    assert build_sampler(wanted, tmp_path / "a").lowered.form == "loop"
    assert build_sampler(wanted, tmp_path / "b", "scan").lowered.form == "scan"
    assert build_sampler(program, tmp_path / "c").lowered.form == "copies"


def test_an_unknown_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="use one of auto, scan, loop, function, copies"):
        build_sampler(mlp(2), tmp_path / "a", "unrolled")  # type: ignore[arg-type]  # what a caller may write


def broken(change: str) -> tuple[SamplerProgram, str]:
    program = mlp(2)
    loop, tables = program.loop, dict(program.loop.tables)
    if change == "dtype":
        loop = dataclasses.replace(loop, tables={**tables, "time": tables["time"].int()})
        return dataclasses.replace(program, loop=loop), "the table of 'time' is torch.int32"
    if change == "rows":
        loop = dataclasses.replace(loop, tables={**tables, "row": tables["row"][:1]})
        return dataclasses.replace(program, loop=loop), "'row' has the shape"
    if change == "shape":
        loop = dataclasses.replace(loop, tables={**tables, "row": tables["row"][:, :40]})
        return dataclasses.replace(program, loop=loop), r"the table of 'row' is torch.float32\[40\]"
    if change == "absent":
        loop = dataclasses.replace(loop, tables={n: t for n, t in tables.items() if n != "gain"})
        return dataclasses.replace(program, loop=loop), "nothing supplies the step's input 'gain'"
    if change == "unknown":
        loop = dataclasses.replace(loop, tables={**tables, "other": tables["gain"]})
        return dataclasses.replace(program, loop=loop), "'other'"
    if change == "steps":
        return dataclasses.replace(program, loop=dataclasses.replace(loop, steps=0)), "0 steps"
    if change == "state":
        return dataclasses.replace(program, loop=dataclasses.replace(loop, state=("x",))), "2 outputs of the step"
    return dataclasses.replace(program, epilogue=attention(1).epilogue), "nothing supplies the epilogue's input"


@pytest.mark.parametrize("change", ["dtype", "rows", "shape", "absent", "unknown", "steps", "state", "epilogue"])
def test_parts_that_do_not_fit_are_refused_before_anything_is_exported(tmp_path: Path, change: str) -> None:
    program, message = broken(change)
    with pytest.raises(InternalError, match=message):
        build_sampler(program, tmp_path / "a", "scan")
    assert not (tmp_path / "a").exists()


class Counting(nn.Module):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.calls.add_(1)
        return {"x": x + self.calls}


def test_a_step_that_changes_its_module_is_refused(tmp_path: Path) -> None:
    program = mlp(2)
    step = part(Counting(), {"x": torch.randn(3, 8)}, {"x": {0: "batch"}}, 1)
    with pytest.raises(UserError, match="the step of the sampler changes 'calls'"):
        build_sampler(dataclasses.replace(program, step=step), tmp_path / "a")
