"""What ``inspect_model`` and ``inspect_artifact`` count, against numbers that are worked out by hand."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

import flowopt
from flowopt.errors import MalformedModel, ModelNotFound, Untrusted
from flowopt.report.inspection import StoredTensors
from flowopt.workflows.inspect import stored_by_dtype
from tests.cli.models import folding, post_norm
from tests.zoo.models import randomise


class Counting(nn.Module):
    """A tied weight, a table of integers, and a buffer that every call changes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.calls: Tensor
        self.table: Tensor
        self.register_buffer("calls", torch.zeros(2))
        self.register_buffer("table", torch.arange(3))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        result: Tensor = self.second(self.first(x)) + self.table.sum() + self.calls.sum()
        return result


def counting() -> flowopt.Program:
    module = Counting()
    randomise(module, seed=1)
    return flowopt.capture(module.eval(), (torch.randn(5, 4),), dynamic={"x": {0: "batch"}}, dims={"batch": (2, 9)})


@pytest.fixture(scope="module")
def found() -> Any:
    return flowopt.inspect_model(counting())


def test_tied_tensors_count_once_and_by_dtype(found: Any) -> None:
    assert found.stored == (StoredTensors("float32", 2, 16 + 2, 72), StoredTensors("int64", 1, 3, 24))


def test_operators_are_counted(found: Any) -> None:
    assert found.census["aten.linear"] == 2
    assert sum(found.census.values()) == sum(1 for n in counting().graph.nodes if n.op == "call_function")


def test_cost_is_that_of_captured_sizes(found: Any) -> None:
    assert found.captured == {"batch": 5}
    # Two products of 5x4 with 4x4; the other operators count their elements: two of 5x4, and six or seven numbers.
    assert found.flops >= 2 * (2 * 5 * 4 * 4) + 2 * 20
    assert found.flops < 2 * (2 * 5 * 4 * 4) + 2 * 20 + 10
    assert found.activation_bytes >= 2 * 5 * 4 * 4


def test_interface_state_and_ranges_are_named(found: Any) -> None:
    assert found.state == ("state_calls",)
    assert found.interface["dims"] == {"batch": {"minimum": 2, "maximum": 9}}
    assert found.interface["inputs"][1] == {"name": "x", "dtype": "float32", "shape": ["batch", 4], "state": None}
    assert found.interface["outputs"][-1]["name"] == "state_calls.next"


def test_passes_are_counted_as_explain_finds_them() -> None:
    module, inputs = post_norm()
    program = flowopt.capture(module, inputs)
    found = {one.name: one for one in flowopt.inspect_model(program).passes}
    assert (found["fold-norm-affine"].applied, found["fold-norm-affine"].refused) == (0, {"post-norm": 2})
    made = folding()
    program = flowopt.capture(made["module"], made["args"], dynamic=made["dynamic"], dims=made["dims"])
    found = {one.name: one for one in flowopt.inspect_model(program, passes="fold-batch-norm").passes}
    assert list(found) == ["canonicalize-aten", "fold-batch-norm"] and found["fold-batch-norm"].applied == 1


def test_the_program_stays_as_it_is() -> None:
    program = counting()
    before = [str(n) for n in program.graph.nodes], set(program.tensors)
    flowopt.inspect_model(program)
    assert ([str(n) for n in program.graph.nodes], set(program.tensors)) == before


def test_views_of_one_memory_are_one() -> None:
    whole = torch.zeros(6)
    assert stored_by_dtype([whole, whole[:3], whole.view(2, 3)]) == (StoredTensors("float32", 1, 6, 24),)
    assert stored_by_dtype([whole[:2], whole[4:]]) == (StoredTensors("float32", 1, 4, 24),)
    assert stored_by_dtype([]) == ()


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One artifact for ONNX Runtime and one for torch."""
    folder = tmp_path_factory.mktemp("artifacts")
    for target in ("cpu", "torch"):
        flowopt.optimize(wide(), target=target, folder=folder / target, verify="off", passes="none")
    return folder


def wide() -> flowopt.Program:
    """A tied weight that is large enough for a file of its own, and state."""
    module = Counting()
    module.first = nn.Linear(64, 64, bias=False)
    module.second = nn.Linear(64, 64, bias=False)
    module.second.weight = module.first.weight
    randomise(module, seed=1)
    return flowopt.capture(module.eval(), (torch.randn(5, 64),), dynamic={"x": {0: "batch"}}, dims={"batch": (2, 9)})


@pytest.fixture
def copied(artifacts: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(artifacts, tmp_path / "copy")
    yield tmp_path / "copy"


def test_an_artifact_says_what_its_files_hold(artifacts: Path) -> None:
    found = flowopt.inspect_artifact(artifacts / "cpu")
    model = onnx.load(artifacts / "cpu" / "model.onnx", load_external_data=False)
    assert found.census == Counter(node.op_type for node in model.graph.node)
    assert len(found.census) > 1
    assert found.opsets == {d.domain or "ai.onnx": d.version for d in model.opset_import}
    files = [p for p in (artifacts / "cpu").iterdir() if p.name != "report.json"]
    assert found.files == {p.name: p.stat().st_size for p in files}
    assert [one for one in found.stored if one.dtype == "float32"][0].bytes >= 64 * 64 * 4
    assert found.weight_bytes < 2 * 64 * 64 * 4, "a tied weight lies there once"
    assert found.writer.startswith("flowopt ")
    assert found.interface["dims"] == {"batch": {"minimum": 2, "maximum": 9}}
    assert [i["name"] for i in found.interface["inputs"]] == ["state_calls", "x"]
    assert found.report is not None and found.report.outcome == "not-verified"
    assert found.notes == ()


def test_an_archive_of_the_target_torch_too(artifacts: Path) -> None:
    found = flowopt.inspect_artifact(artifacts / "torch")
    assert found.census["aten.linear"] == 2
    assert found.weight_bytes < 2 * 64 * 64 * 4, "a tied weight lies there once"
    assert [i["name"] for i in found.interface["inputs"]] == ["state_calls", "x"]
    assert found.report is not None and found.report.target == "torch"
    assert found.opsets == {}


def test_nothing_is_run(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a runtime was started")

    monkeypatch.setattr("onnxruntime.InferenceSession", refuse)
    monkeypatch.setattr("torch.export.load", refuse)
    monkeypatch.setattr("onnx.load", refuse)
    for target in ("cpu", "torch"):
        flowopt.inspect_artifact(artifacts / target)


def test_a_model_file_beside_its_report_is_the_artifact(artifacts: Path) -> None:
    whole, alone = flowopt.inspect_artifact(artifacts / "cpu"), flowopt.inspect_artifact(artifacts / "cpu/model.onnx")
    assert whole == alone


def test_a_report_of_another_model_does_not_count(copied: Path) -> None:
    report = json.loads((copied / "cpu" / "report.json").read_text())
    (copied / "cpu" / "report.json").write_text(json.dumps(report | {"model_sha256": "0" * 64}))
    found = flowopt.inspect_artifact(copied / "cpu")
    assert found.report is None and found.notes == ("no report.json belongs to this model",)
    assert found.interface["inputs"], "the model itself says what it takes"


@pytest.mark.parametrize(("key", "value"), [("schema_version", 99), ("passes", 3), ("lowered", [{"level": 1}])])
def test_a_report_that_cannot_be_read_is_a_note(copied: Path, key: str, value: object) -> None:
    report = json.loads((copied / "cpu" / "report.json").read_text())
    (copied / "cpu" / "report.json").write_text(json.dumps(report | {key: value}))
    found = flowopt.inspect_artifact(copied / "cpu")
    assert found.report is None and len(found.notes) == 1 and "report" in found.notes[0]


def test_an_onnx_file_of_another_writer_shows_what_can_be_read(tmp_path: Path) -> None:
    relu = helper.make_node("Relu", ["x"], ["y"])
    ends = [helper.make_tensor_value_info(name, 1, [2]) for name in "xy"]
    onnx.save(
        helper.make_model(helper.make_graph([relu], "g", ends[:1], ends[1:]), producer_name="me"), tmp_path / "a.onnx"
    )
    found = flowopt.inspect_artifact(tmp_path / "a.onnx")
    assert (found.census, found.stored, found.writer) == ({"Relu": 1}, (), "me")
    assert any("flowopt did not write it" in note for note in found.notes)


def test_damaged_weights_a_foreign_library_and_what_is_no_artifact_are_refused(copied: Path, tmp_path: Path) -> None:
    weights = next((copied / "cpu").glob("weights.*.data"))
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(MalformedModel, match="truncated|bytes"):
        flowopt.inspect_artifact(copied / "cpu")
    with pytest.raises(MalformedModel, match="is not an artifact"):
        flowopt.inspect_artifact(copied)
    with pytest.raises(ModelNotFound):
        flowopt.inspect_artifact(tmp_path / "absent")
    node = helper.make_node("Mine", ["x"], ["y"], domain="mine")
    onnx.save(helper.make_model(helper.make_graph([node], "g", [], [])), tmp_path / "a.onnx")
    with pytest.raises(Untrusted, match="mine::Mine"):
        flowopt.inspect_artifact(tmp_path / "a.onnx")
