"""Lowering to ONNX: names, dimensions, results, and what must not happen to the graph."""

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from flowopt.errors import UserError
from flowopt.formats.digest import file_sha256
from flowopt.ir.fingerprint import fingerprint
from flowopt.lowering.onnx.export import lower_to_onnx
from flowopt.lowering.staging import Staging
from flowopt.program.program import Program
from flowopt.runtime.layout import weights_name
from tests.lowering import models
from tests.lowering.build import build, built

# float32 sums of at most 300 products of N(0, 1) values, in another order.
TOLERANCE = 2e-5


def graph_of(folder: Path) -> Any:
    return onnx.load(str(folder / "model.onnx"), load_external_data=False).graph


def shape_of(value: Any) -> list[str | int]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def require_equal(got: Tensor | dict[str, Tensor], wanted: Tensor | dict[str, Tensor]) -> None:
    if isinstance(got, Tensor):
        got, wanted = {"": got}, {"": wanted}  # type: ignore[dict-item]  # both are bare
    assert isinstance(wanted, dict) and list(got) == list(wanted)
    for name, value in got.items():
        assert value.dtype == wanted[name].dtype, name
        torch.testing.assert_close(value, wanted[name], rtol=TOLERANCE, atol=TOLERANCE)


def test_inputs_outputs_and_dimensions_keep_their_names() -> None:
    graph = graph_of(built(models.nested).folder)
    assert [(i.name, shape_of(i)) for i in graph.input] == [("x", ["batch", 6]), ("spare", [2])]
    names = ["hidden", "parts.0", "parts.1.again", "same", "table"]
    assert [o.name for o in graph.output] == names
    assert [shape_of(o) for o in graph.output] == [["batch", 5]] * 3 + [["batch", 6], [40, 10]]


def test_inner_shapes_name_no_symbol() -> None:
    one = built(models.attention)
    used = {d for v in graph_of(one.folder).value_info for d in shape_of(v) if isinstance(d, str)}
    assert {"batch", "length"} <= used
    assert not [u for u in used if any(d.symbol in u for d in one.program.dims)]


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_nested_outputs_agree_at_every_batch(batch: int) -> None:
    one = built(models.nested)
    x, spare = torch.randn(batch, 6), torch.randn(2)
    require_equal(one.artifact.run(x, spare), one.program.run(x, spare))


def test_a_bare_tensor_stays_bare() -> None:
    one = built(models.attention)
    for sizes in ((1, 1), (2, 7), (5, 3)):
        x = torch.randn(*sizes, 32)
        result = one.artifact.run(x=x)
        assert isinstance(result, Tensor)
        require_equal(result, one.program.run(x))


def test_state_has_its_stored_default_and_can_be_given() -> None:
    one = built(models.counter)
    program, artifact = one.program, one.artifact
    x = torch.randn(4, 300)
    first = artifact.run(x)
    require_equal(first, program.run(x))
    assert isinstance(first, dict)
    state = {i.name: first[f"{i.name}.next"] for i in artifact.inputs if i.state}
    second = artifact.run(x, **state)
    require_equal(second, program.run(x, **state))
    assert isinstance(second, dict) and second["state_calls.next"] == 2
    # What was given is not remembered.
    require_equal(artifact.run(x), first)


def test_tied_weights_are_stored_once() -> None:
    one = built(models.tied)
    assert (one.folder / one.lowered.weights[0]).stat().st_size == 100 * 16 * 4
    ids = torch.randint(0, 50, (3, 4))
    require_equal(one.artifact.run(ids), one.program.run(ids))


def test_one_storage_under_two_names_is_stored_once(tmp_path: Path) -> None:
    program = built(models.tied).program.copy()
    program.tensors["head.weight"] = program.tensors["embedding.weight"]
    head = next(n for n in program.graph.nodes if n.target is torch.ops.aten.linear.default)
    first = head.args[1]
    with program.graph.inserting_before(head):
        second = program.graph.create_node("get_attr", "head.weight")
        # Not transposed before it is stored, hence the very same bytes.
        straight = program.graph.call_function(torch.ops.aten.relu.default, (second,))
    second.meta, straight.meta = dict(first.meta), dict(first.meta)
    head.replace_input_with(first, straight)
    artifact, lowered = build(program, tmp_path / "a")
    names = {t.name for t in graph_of(tmp_path / "a").initializer}
    assert {"embedding.weight", "head.weight"} <= names
    assert (tmp_path / "a" / lowered.weights[0]).stat().st_size == 100 * 16 * 4
    ids = torch.randint(0, 50, (3, 4))
    require_equal(artifact.run(ids), program.run(ids))


def test_weights_of_products_are_stored_transposed() -> None:
    one = built(models.attention)
    graph = graph_of(one.folder)
    initializers = {i.name: list(i.dims) for i in graph.initializer}
    assert initializers["project.weight"] == [32, 96]
    assert not [n for n in graph.node if n.op_type == "Transpose" and n.input[0] in initializers]
    assert one.lowered.op_census["MatMul"] == 2


def test_batch_norm_is_not_folded() -> None:
    one = built(models.convolutions)
    assert one.lowered.op_census["BatchNormalization"] == 1
    image = torch.randn(3, 3, 8, 8)
    require_equal(one.artifact.run(image), one.program.run(image))


def test_nodes_name_the_node_they_came_from() -> None:
    one = built(models.attention)
    known = {n.name for n in one.program.graph.nodes}
    found = [{p.key: p.value for p in n.metadata_props} for n in graph_of(one.folder).node]
    assert {key for entry in found for key in entry} == {"flowopt.node"}
    named = {entry["flowopt.node"] for entry in found if entry}
    assert named <= known and "scaled_dot_product_attention" in named


def test_nodes_that_a_pass_made_keep_their_names(tmp_path: Path) -> None:
    program = built(models.attention).program.copy()
    node = next(n for n in program.graph.nodes if n.target is torch.ops.aten.linear.default)
    with program.graph.inserting_before(node):
        merged = program.graph.create_node("call_function", node.target, node.args, name="merged_by_a_pass")
    merged.meta = dict(node.meta)
    node.replace_all_uses_with(merged)
    program.graph.erase_node(node)
    build(program, tmp_path / "a")
    graph = graph_of(tmp_path / "a")
    assert [n.op_type for n in graph.node if any(p.value == "merged_by_a_pass" for p in n.metadata_props)] == [
        "MatMul",
        "Add",
    ]


@pytest.mark.parametrize("make", [models.nested, models.counter, models.attention, models.convolutions])
def test_the_file_is_valid_and_holds_no_path(make: Callable[[], Program]) -> None:
    folder = built(make).folder
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
    for file in folder.iterdir():
        content = file.read_bytes()
        for part in (str(folder), str(Path(__file__).parents[2]), "site-packages", ".py"):
            assert part.encode() not in content, f"{part} in {file.name}"


def test_weights_are_named_by_content_and_recorded_in_the_model() -> None:
    folder = built(models.attention).folder
    metadata = {p.key: p.value for p in onnx.load(str(folder / "model.onnx")).metadata_props}
    name = weights_name(metadata["flowopt.weights_sha256"])
    assert weights_name(file_sha256(folder / name)) == name
    assert metadata["flowopt.version"]


def test_offsets_are_aligned_and_small_tensors_stay_inline() -> None:
    sizes = []
    for tensor in graph_of(built(models.attention).folder).initializer:
        entries = {e.key: e.value for e in tensor.external_data}
        if entries:
            assert int(entries["offset"]) % 64 == 0
            sizes.append(int(entries["length"]))
        else:
            assert len(tensor.raw_data) < 1024
    assert min(sizes) >= 1024


class Echo(nn.Module):
    """Calls an output as its input, and a parameter as the other input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(20, 20))

    def forward(self, x: Tensor, weight: Tensor) -> dict[str, Tensor]:
        return {"x": x @ self.weight, "linear": weight + 1}


def test_an_output_may_have_an_inputs_name(tmp_path: Path) -> None:
    program = models.program(Echo(), torch.randn(3, 20), torch.randn(4), dynamic={"x": {0: "batch"}})
    artifact, _ = build(program, tmp_path / "a")
    assert [o.name for o in artifact.outputs] == ["x", "linear"]
    assert [o.shape for o in artifact.outputs] == [("batch", 20), (4,)]
    x, weight = torch.randn(5, 20), torch.randn(4)
    require_equal(artifact.run(x, weight), program.run(x, weight))


class Constant(nn.Module):
    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.arange(7))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x, x, self.steps * 2


def test_a_model_that_computes_nothing_lowers(tmp_path: Path) -> None:
    program = models.program(Constant(), torch.randn(3), dynamic={"x": {0: "n"}})
    artifact, _ = build(program, tmp_path / "a")
    x = torch.randn(2)
    require_equal(artifact.run(x), program.run(x))


class Derived(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x[:1]]).repeat(2, 1)


def test_derived_dimensions_are_expressions_of_names(tmp_path: Path) -> None:
    program = models.program(Derived(), torch.randn(3, 2), dynamic={"x": {0: "batch"}})
    artifact, _ = build(program, tmp_path / "a")
    assert artifact.outputs[0].shape == ("2*batch + 2", 2)
    assert shape_of(graph_of(tmp_path / "a").output[0]) == ["2*batch + 2", 2]
    require_equal(artifact.run(torch.ones(5, 2)), torch.ones(12, 2))


class Exotic(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(x @ x.T)


def test_an_operator_without_onnx_form_is_named_with_the_users_line(tmp_path: Path) -> None:
    program = models.program(Exotic(), torch.randn(3, 3))
    with pytest.raises(UserError) as caught, Staging(tmp_path / "a") as staging:
        lower_to_onnx(program, staging)
    assert "_linalg_eigh" in caught.value.message
    assert "return torch.linalg.eigvalsh(x @ x.T)" in caught.value.message
    assert "Traceback" not in str(caught.value)
    assert not (tmp_path / "a").exists()


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x)


def test_complex_outputs_are_refused(tmp_path: Path) -> None:
    program = models.program(Spectrum(), torch.randn(3, 8))
    with pytest.raises(UserError, match="complex"), Staging(tmp_path / "a") as staging:
        lower_to_onnx(program, staging)


def test_lowering_is_silent_and_leaves_the_program_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    program = built(models.counter).program
    before = fingerprint(program.graph, program.tensors)
    build(program, tmp_path / "a")
    assert fingerprint(program.graph, program.tensors) == before
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


class ReturnsItsWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x), self.linear.bias


def test_a_weight_that_is_returned_too_is_lowered_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    x = torch.randn(2, 3)
    program = models.program(ReturnsItsWeight(), x)
    artifact, _ = build(program, tmp_path / "a")
    require_equal(artifact.run(x), program.run(x))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_same_program_gives_the_same_bytes_in_another_folder(tmp_path: Path) -> None:
    one = built(models.attention)
    build(one.program, tmp_path / "deeper" / "b")
    first = {f.name: f.read_bytes() for f in one.folder.iterdir()}
    assert first == {f.name: f.read_bytes() for f in (tmp_path / "deeper" / "b").iterdir()}


class WithoutGains(nn.Module):
    """Two norms of one width without a gain, as after their gains were folded, and one of another width."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.rms_norm(self.first(nn.functional.rms_norm(x, (6,), eps=1e-6)), (6,), eps=1e-6)
        return nn.functional.rms_norm(self.second(x), (4,), eps=1e-6)


def test_norms_without_gain_share_stored_ones(tmp_path: Path) -> None:
    one = models.program(WithoutGains(), torch.randn(3, 6), dynamic={"x": {0: "batch"}})
    artifact, _ = build(one, tmp_path / "artifact")
    graph = graph_of(artifact.folder)
    counts = Counter(node.op_type for node in graph.node)
    assert counts["RMSNormalization"] == 3
    assert counts["ConstantOfShape"] == counts["Shape"] == 0
    assert sorted(tuple(i.dims) for i in graph.initializer if len(i.dims) == 1 and "ones" in i.name) == [(4,), (6,)]
    x = torch.randn(5, 6)
    require_equal(artifact.run(x), one.run(x))
