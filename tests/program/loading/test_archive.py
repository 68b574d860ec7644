"""Archives that torch wrote: read without torch's loader, equal to the model, mapped rather than copied."""

import hashlib
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import flowopt
from flowopt.errors import MalformedModel
from flowopt.program.loading import archive as archive_module
from tests.goals.archives import check_round_trip, measured_memory
from tests.hostile.pt2_archive import entries, packed, parts, with_members, written
from tests.zoo.models import ZOO
from tests.zoo.randomise import randomise


class Tied(nn.Module):
    """A tied head, and a view of one parameter as another."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.randn(4, 6)[1:3].t())

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embedding(ids))
        return logits + self.scale.sum()


def saved(module: nn.Module, path: Path, *args: Tensor) -> Path:
    torch.export.save(torch.export.export(randomised(module), args), path)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no names of any bytes")
def test_a_name_that_is_no_utf_8_is_told_in_a_report(tmp_path: Path) -> None:
    path = with_members(tmp_path, {}).rename(tmp_path / os.fsdecode(b"caf\xe9.pt2"))
    assert flowopt.load(path).provenance.source == r"caf\udce9.pt2"


def randomised(module: nn.Module) -> nn.Module:
    randomise(module, seed=4)
    return module.eval()


def test_tied_and_strided_weights_are_equal_and_still_tied(tmp_path: Path) -> None:
    ids = torch.randint(0, 11, (2, 5))
    module = Tied()
    program = flowopt.load(saved(module, tmp_path / "a.pt2", ids))
    assert torch.equal(program.run(ids), module(ids))  # type: ignore[arg-type]  # one bare tensor
    assert sorted(program.tensors) == ["embedding.weight", "scale"]
    assert program.tensors["scale"].stride() == (1, 6)


def test_weights_stay_mapped_in_the_file_which_stays_as_it_was(tmp_path: Path) -> None:
    path = saved(nn.Linear(300, 300), tmp_path / "a.pt2", torch.randn(2, 300))
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    weight = flowopt.load(path).tensors["weight"]
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("a.pt2")]
    places = [[int(end, 16) for end in words[0].split("-")] for words in maps]
    assert any(low <= weight.data_ptr() < high for low, high in places)
    weight.zero_()  # nobody does: but even then it is a private page that changes
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def test_what_was_exported_on_a_gpu_loads_on_the_cpu(tmp_path: Path) -> None:
    found = parts()
    on_gpu = {name: raw.replace(b'"type": "cpu"', b'"type": "cuda"') for name, raw in found.items()}
    assert on_gpu != found
    program = flowopt.load(written(tmp_path, packed(entries(on_gpu))))
    assert {t.device.type for t in program.tensors.values()} == {"cpu"}
    assert all(node.kwargs.get("device", torch.device("cpu")).type == "cpu" for node in program.graph.nodes)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(nn.Linear(3, 3), tmp_path / "a.pt2", torch.randn(2, 3))
    monkeypatch.setattr(archive_module, "run_isolated", lambda *_, **__: "0" * 64)
    with pytest.raises(MalformedModel, match="changed while it was read"):
        flowopt.load(path)


def test_the_report_names_the_file_its_digest_and_its_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "b.pt"
    torch.save(randomised(nn.Linear(3, 3)), path)
    program = flowopt.load(path, trust="code", shapes={"input": "2x3"})
    monkeypatch.chdir(tmp_path)
    result = flowopt.optimize(program, target="cpu")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (result.report.source, result.report.source_sha256, result.report.trust) == ("b.pt", digest, "code")
    assert result.artifact is not None
    assert result.artifact.folder.name == "b.flowopt"


def test_sizes_keep_names_ranges_and_captured_values(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=2, max=40)
    exported = torch.export.export(nn.Linear(3, 3), (torch.randn(7, 3),), dynamic_shapes=({0: batch},))
    torch.export.save(exported, tmp_path / "a.pt2")
    (dim,) = flowopt.load(tmp_path / "a.pt2").dims
    assert (dim.name, dim.minimum, dim.maximum, dim.traced) == ("input_0", 2, 40, 7)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_comes_back_bit_for_bit_without_transformers(name: str) -> None:
    check_round_trip(name)


@pytest.mark.slow
def test_a_large_archive_costs_no_memory_beyond_its_pages() -> None:
    added, size = measured_memory(0.5)
    assert size > 5e8
    assert added < 5e7
