"""Every kind of source opens, and what is no data is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from flowopt.errors import MalformedModel, ModelNotFound, UserError
from flowopt.recovery.data.array_files import read_arrays
from flowopt.recovery.data.data import Data
from flowopt.recovery.data.open_data import open_data
from tests.recovery.data import factories, interfaces

FACTORIES = "tests.recovery.data.factories"


def numbered(count: int, first: int = 0) -> dict[str, torch.Tensor]:
    """Samples that are told apart by their label."""
    label = torch.arange(first, first + count)
    return {"x": label.float().unsqueeze(1).expand(-1, 3).contiguous(), "label": label}


def folder(path: Path, *counts: int) -> Path:
    first = 0
    for i, count in enumerate(counts):
        arrays = numbered(count, first)
        if i % 2:
            save_file(arrays, path / f"part{i}.safetensors")
        else:
            np.savez(path / f"part{i}.npz", x=arrays["x"].numpy(), label=arrays["label"].numpy())
        first += count
    return path


def labels(data: Data, epoch: int = 0) -> list[list[int]]:
    found = list(data.training(epoch))
    assert all(torch.equal(b.inputs["x"][:, 0].long(), b.extra["label"]) for b in found)
    return [b.extra["label"].tolist() for b in found]


def all_labels(data: Data) -> list[int]:
    held = [label for batch in data.held_out() for label in batch.extra["label"].tolist()]
    return sorted(held + [label for batch in labels(data) for label in batch])


def open_it(source: Any, **options: Any) -> Data:
    return open_data(source, options.pop("interface", None) or interfaces.vectors(), **options)


def test_one_file_of_either_kind(tmp_path: Path) -> None:
    folder(tmp_path, 50, 50)
    for i, name in enumerate(("part0.npz", "part1.safetensors")):
        assert all_labels(open_it(tmp_path / name, batch_size=5)) == list(range(50 * i, 50 * i + 50))


def test_a_folder_is_all_its_files(tmp_path: Path) -> None:
    assert all_labels(open_it(folder(tmp_path, 20, 13, 7), batch_size=4, held_out=0.2)) == list(range(40))


def test_of_a_folder_one_file_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_it(folder(tmp_path, 8, 8, 8), batch_size=4, held_out=0.0)
    reads: list[str] = []

    def counted(path: Path) -> dict[str, torch.Tensor]:
        reads.append(path.name)
        return read_arrays(path)

    monkeypatch.setattr("flowopt.recovery.data.open_data.read_arrays", counted)
    assert len(labels(data)) == 6 and sorted(reads) == ["part0.npz", "part1.safetensors", "part2.npz"]


def test_batches_span_small_files(tmp_path: Path) -> None:
    found = labels(open_it(folder(tmp_path, *[1] * 12), batch_size=4, held_out=0.0))
    assert [len(batch) for batch in found] == [4, 4, 4] and sorted(sum(found, [])) == list(range(12))


def test_samples_of_one_length_share_a_batch(tmp_path: Path) -> None:
    for i, tokens in enumerate((5, 7, 5, 7)):
        np.savez(tmp_path / f"{i}.npz", ids=np.full((3, tokens), i), mask=np.ones((3, tokens), bool))
    data = open_it(tmp_path, interface=interfaces.text(), batch_size=6, held_out=0.0)
    found = sorted(tuple(batch.inputs["ids"].shape) for batch in data.training(0))
    assert found == [(6, 5), (6, 7)] and data.training_batches == 2


def test_a_mapping_is_data() -> None:
    assert all_labels(open_it(numbered(50), batch_size=5)) == list(range(50))


def test_a_function_by_name_is_called_for_each_epoch() -> None:
    data = open_it(f"{FACTORIES}:numbered", held_out=0.25)
    before = len(factories.WALKS)
    assert [len(labels(data, epoch)) for epoch in (0, 1)] == [9, 9] and len(factories.WALKS) == before + 2


def test_a_function_may_return_its_arrays_at_once() -> None:
    assert open_it(f"{FACTORIES}:in_memory", batch_size=5).training_batches == 9


def test_tuples_with_labels_are_batches() -> None:
    found = list(open_it(f"{FACTORIES}:pairs", held_out=0.0).training(0))
    assert sorted(int(b.extra["labels"][0]) for b in found) == [0, 1, 2, 3]


def test_an_iterable_that_can_be_walked_again_is_data() -> None:
    assert len(labels(open_it([numbered(4), numbered(4)], held_out=0.0))) == 2


def test_an_iterator_is_walked_only_once_and_refused() -> None:
    with pytest.raises(UserError, match="generator, which can be walked only once"):
        open_it(factories.numbered())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "none gives no batch"),
        ("number", "gives int, which cannot be walked"),
        ("NOT_THERE", "has no function 'NOT_THERE'"),
    ],
)
def test_a_function_without_batches_is_refused(name: str, message: str) -> None:
    with pytest.raises((UserError, ModelNotFound), match=message):
        open_it(f"{FACTORIES}:{name}")


def test_what_a_function_raises_on_the_way_is_told_with_its_line() -> None:
    data = open_it(f"{FACTORIES}:breaks", held_out=0.0)
    with pytest.raises(UserError, match="breaks raised ValueError: the tokenizer is gone") as caught:
        list(data.training(0))
    assert "factories.py" in caught.value.why


def test_graphs_come_as_whole_batches() -> None:
    made = [{"nodes": torch.zeros(n, 4), "edges": torch.zeros(2, 9).long()} for n in (3, 5)]
    data = open_it(made, interface=interfaces.graphs(), held_out=0.0)
    assert sorted(len(batch.inputs["nodes"]) for batch in data.training(0)) == [3, 5]


def test_without_an_axis_of_samples_files_are_refused() -> None:
    arrays = {"nodes": torch.zeros(2, 4), "edges": torch.zeros(2, 9).long()}
    with pytest.raises(UserError, match="the model's inputs share no first axis"):
        open_it(arrays, interface=interfaces.graphs())


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no file or folder of data"):
        open_it(tmp_path / "nothing.npz")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \.npz or \.safetensors file"):
        open_it(tmp_path)


def test_another_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("1,2,3")
    with pytest.raises(UserError, match=r"data\.csv is neither"):
        open_it(tmp_path / "data.csv")


@pytest.mark.parametrize("name", ["data.npz", "data.safetensors"])
def test_a_damaged_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(MalformedModel):
        open_it(tmp_path / name)


def test_a_nan_in_a_folder_names_its_file_before_training(tmp_path: Path) -> None:
    folder(tmp_path, 5, 5)
    np.savez(tmp_path / "bad.npz", x=np.array([[1, 2, 3], [1, np.nan, 3]], np.float32), label=np.array([0, 1]))
    with pytest.raises(UserError, match=r"bad\.npz: 'x' holds a NaN, first in row 1"):
        open_it(tmp_path)


def test_fewer_samples_than_a_batch_are_refused() -> None:
    with pytest.raises(UserError, match="9 samples for training fill no batch of 16") as caught:
        open_it(numbered(10), batch_size=16)
    assert "at most 9" in caught.value.hint


def test_a_batch_size_that_the_model_does_not_take_is_refused() -> None:
    with pytest.raises(UserError, match="the batch size is 9, but the model takes 2 to 8 samples"):
        open_it(numbered(50), interface=interfaces.vectors(dims=(2, 8)), batch_size=9)


def test_a_model_of_fixed_batch_gets_exactly_that() -> None:
    for source in (numbered(50), lambda: iter([numbered(25), numbered(25, 25)])):
        data = open_it(source, interface=interfaces.vectors(batch=4), held_out=0.5)
        assert {b.samples for b in data.training(0)} | {b.samples for b in data.held_out()} == {4}
    with pytest.raises(UserError, match="the model takes exactly 4"):
        open_it(numbered(50), interface=interfaces.vectors(batch=4), batch_size=8)


@pytest.mark.parametrize("options", [{"seed": -1}, {"most": 0}, {"held_out": 1.0}, {"held_out": -0.1}])
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        open_it(numbered(50), **options)
