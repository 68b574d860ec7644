"""Every kind of file is found by its content, and no content breaks the finding."""

import io
import os
import pickle
import struct
import time
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from flowopt.errors import ModelNotFound, UserError
from flowopt.formats.detect import Detected, Kind, detect
from flowopt.formats.detect_zip import _problem_of_end
from tests.hostile.broken_files import broken_files
from tests.hostile.valid_files import Net, valid_files


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Kind]]:
    files = valid_files(tmp_path_factory.mktemp("valid"))
    return {path.stem: (path, kind) for path, kind in files.items()}


def _of(folder: Path, content: bytes) -> Detected:
    (folder / "file.onnx").write_bytes(content)
    return detect(folder / "file.onnx")


def _saved(folder: Path, value: object) -> Detected:
    torch.save(value, folder / "saved")
    return detect(folder / "saved")


def test_finds_every_kind_whatever_the_suffix(valid: dict[str, tuple[Path, Kind]]) -> None:
    found = {name: detect(path).kind for name, (path, _) in valid.items()}
    assert found == {name: kind for name, (_, kind) in valid.items()}


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("module", "a pickled module of class tests.hostile.valid_files.Net"),
        ("module_legacy", "a pickled module of class tests.hostile.valid_files.Net"),
        ("weights", "a state dict of 2 tensors"),
        ("weights_legacy", "a state dict of 2 tensors"),
        ("checkpoint", "a checkpoint: weights and more (keys epoch, model)"),
        ("checkpoint_module", "a checkpoint whose model is a pickled module of class tests.hostile.valid_files.Net"),
        ("bare_module", "a pickled module of class tests.hostile.valid_files.Net, not saved through torch.save"),
        ("list_of_tensors", "a list or tuple saved by torch.save"),
        ("pointer", "a Git LFS pointer to a file of 3,145,728 bytes (sha256 4d7a2146...)"),
        ("page", "an HTML page titled 'Not Found'"),
        ("xml", "an XML document (root element Error)"),
        ("json", 'a JSON text that begins "{"error": "Repository not found"}"'),
        ("text", 'a text that begins "Entry not found"'),
        ("toml", 'a text that begins "[build-system]"'),
        ("onnx", "an ONNX model by pytorch"),
        ("export_old", "a torch.export archive of torch 2.6 or older"),
        ("aoti_beside", "an AOTInductor package: a compiled library, beside an exported graph"),
        ("tensors", "a safetensors file of 2 tensors"),
    ],
)
def test_says_in_one_phrase_what_a_file_is(valid: dict[str, tuple[Path, Kind]], name: str, detail: str) -> None:
    assert detect(valid[name][0]).detail == detail


def test_gives_the_class_of_a_module_and_the_keys_of_a_state_dict(valid: dict[str, tuple[Path, Kind]]) -> None:
    assert detect(valid["module"][0]).class_name == "tests.hostile.valid_files.Net"
    assert detect(valid["weights"][0]).keys == ("layer.weight", "layer.bias")
    assert detect(valid["pointer"][0]).size == 3_145_728


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (nn.Sequential(nn.Linear(2, 2)), "torch.nn.modules.container.Sequential"),
        (nn.DataParallel(Net()), "torch.nn.parallel.data_parallel.DataParallel"),
        (Net.Inner(), "tests.hostile.valid_files.Net.Inner"),
        (torch.fx.symbolic_trace(Net()), "torch.fx.graph_module.reduce_graph_module"),
    ],
)
def test_names_the_outermost_class_of_a_module(tmp_path: Path, value: nn.Module, name: str) -> None:
    found = _saved(tmp_path, value)
    assert (found.kind, found.class_name) == (Kind.PICKLED_MODULE, name)


def test_weights_of_every_form_are_a_state_dict_without_foreign_names(tmp_path: Path) -> None:
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(2))])
    values: list[object] = [
        OrderedDict(),
        {"a": nn.Parameter(torch.ones(1)), "b": torch.ones(2, dtype=torch.bfloat16)},
        {"a": torch.ones(2).to_sparse(), "b": torch.ones(2, dtype=torch.complex64)},
        {"model": Net().state_dict(), "optimizer": optimizer.state_dict(), "best": 0.5, "size": torch.Size([1])},
    ]
    found = [_saved(tmp_path, value) for value in values]
    assert [(f.kind, f.foreign) for f in found] == [(Kind.STATE_DICT, ())] * len(values)


def test_a_checkpoint_with_more_than_data_names_what_is_foreign(tmp_path: Path) -> None:
    found = _saved(tmp_path, {"weights": torch.ones(1), "args": Path("x")})
    assert found.kind is Kind.STATE_DICT
    assert found.foreign[0].startswith("pathlib.")


class _Call:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("exit 1",)


def test_a_pickle_that_calls_a_function_is_described_and_not_run(tmp_path: Path) -> None:
    found = _of(tmp_path, pickle.dumps(_Call()))
    assert (found.kind, found.class_name) == (Kind.PICKLE, "posix.system")


@pytest.mark.parametrize("name", ["export", "module", "script", "arrays", "document"])
def test_a_zip_archive_cut_off_anywhere_is_no_model(
    valid: dict[str, tuple[Path, Kind]], tmp_path: Path, name: str
) -> None:
    raw = valid[name][0].read_bytes()
    kinds = {_of(tmp_path, raw[:keep]).kind for keep in range(30, len(raw), 61)}
    assert kinds <= {Kind.TRUNCATED, Kind.DAMAGED}


def test_a_cut_that_ends_with_a_whole_archive_inside_is_not_taken_for_that_one(tmp_path: Path) -> None:
    torch.save(torch.ones(2), inner := io.BytesIO())
    with zipfile.ZipFile(outer := io.BytesIO(), "w") as archive:
        archive.writestr("model/data/weights/w0", inner.getvalue())
    raw = outer.getvalue()
    cut = raw[: raw.index(inner.getvalue()) + len(inner.getvalue())]
    assert zipfile.is_zipfile(io.BytesIO(cut))
    assert _of(tmp_path, cut).kind is Kind.DAMAGED


def test_truncated_files_say_how_many_bytes_they_should_have(
    valid: dict[str, tuple[Path, Kind]], tmp_path: Path
) -> None:
    tensors, model = (valid[name][0].read_bytes() for name in ("tensors", "onnx"))
    found = _of(tmp_path, tensors[:-5])
    assert (found.kind, found.present, found.size) == (Kind.TRUNCATED, len(tensors) - 5, len(tensors))
    assert _of(tmp_path, tensors[:20]).kind is Kind.TRUNCATED
    assert _of(tmp_path, tensors + b"x").kind is Kind.DAMAGED
    graph = _of(tmp_path, model[: len(model) // 2])
    assert graph.kind is Kind.TRUNCATED
    assert graph.size is not None and len(model) // 2 < graph.size <= len(model)
    assert _of(tmp_path, pickle.dumps([1, 2, 3, "text"])[:-6]).kind is Kind.TRUNCATED


def test_onnx_models_that_only_libraries_write_are_found(tmp_path: Path) -> None:
    model = onnx.ModelProto(ir_version=10)
    model.graph.name = "g"
    assert _of(tmp_path, model.SerializeToString()).kind is Kind.ONNX
    model.opset_import.add(version=20)
    model.metadata_props.add(key="a", value="b" * 300)
    model.model_version = 7
    assert _of(tmp_path, model.SerializeToString()).kind is Kind.ONNX


def test_nothing_in_a_file_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    hostile = "\x1b[2J\u202e\r\nrm"
    contents = [
        f"<html><title>{hostile}</title>".encode(),
        f"&#27;{hostile}".encode(),
        b"<html><title>&#27;[2J</title>",
        pickle.dumps(_Call()).replace(b"posix", b"p\x1b[2m"),
    ]
    torch.save({hostile: torch.ones(1), "n": 1}, saved := io.BytesIO())
    assert all(_of(tmp_path, content).detail.isprintable() for content in [*contents, saved.getvalue()])


def test_a_huge_or_endless_pickle_is_bounded(tmp_path: Path) -> None:
    many = pickle.dumps([{"a": index} for index in range(400_000)], protocol=2)
    # One tuple of many parts, used by many calls: a reader that looks at all parts each time never ends.
    calls = b"\x80\x02(" + b"K\x01" * 100_000 + b"tq\x00" + b"0c__main__\nA\nq\x010" + b"h\x01h\x00R0" * 60_000 + b"N."
    names = (
        b"\x80\x04X" + (10_000_000).to_bytes(4, "little") + b"a" * 10_000_000 + b"q\x00" + b"h\x00h\x00\x93" * 50_000
    )
    for content in (many, calls, names + b".", b"\x80\x02" + b"(" * 1_000_000, b"\x80\x02" + b"]q\x00h\x00a" * 200_000):
        start = time.monotonic()
        _of(tmp_path, content)
        # 300,000 opcodes take half a second; the rest is for slow machines.
        assert time.monotonic() - start < 5


def test_entries_that_share_their_parts_are_looked_at_once(tmp_path: Path) -> None:
    count = 50_000
    keys = b"".join(b"\x8c\x05%05xh\x00" % index for index in range(count))
    pickled = b"\x80\x04]\x94(" + b"]" * count + b"e0}(" + keys + b"u."
    with zipfile.ZipFile(tmp_path / "shared", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    start = time.monotonic()
    assert detect(tmp_path / "shared").kind is Kind.PICKLE
    # Half a second; looking at every part for every entry takes hours.
    assert time.monotonic() - start < 5


def test_a_directory_of_a_zip_archive_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    length = 3 << 30
    with path.open("wb") as file:
        file.write(b"PK\x03\x04" + bytes(26))
        file.seek(30 + length)
        file.write(b"PK\x05\x06" + bytes(4) + b"\1\0\1\0" + length.to_bytes(4, "little") + b"\x1e\0\0\0" + b"\0\0")
    assert detect(path).kind is Kind.DAMAGED


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for missing in (tmp_path / "none", tmp_path / "file" / "below", tmp_path / "a\0b"):
        with pytest.raises(ModelNotFound):
            detect(missing)
    assert detect(tmp_path).kind is Kind.FOLDER
    os.mkfifo(tmp_path / "pipe")
    for special in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UserError):
            detect(special)


def test_broken_files_are_always_described(tmp_path: Path) -> None:
    kinds: Counter[Kind] = Counter()
    for broken in broken_files(tmp_path, 2_000, seed=1):
        start = time.monotonic()
        found = detect(broken.path)
        assert time.monotonic() - start < 1, broken
        assert found.detail.isprintable() and len(found.detail) < 400, broken
        assert broken.harmless is not True or found.kind is broken.origin, broken
        kinds[found.kind] += 1
    assert {Kind.TRUNCATED, Kind.DAMAGED, Kind.UNKNOWN, Kind.LFS_POINTER, Kind.HTML, Kind.EMPTY} <= kinds.keys()


class Far(io.BytesIO):
    """The last bytes of a file of five gigabytes."""

    base = 5_000_000_000

    def seek(self, position: int, whence: int = 0) -> int:
        return super().seek(max(position - self.base, 0), whence)


def test_the_end_of_an_archive_beyond_four_gibibytes_is_found_in_its_wide_record() -> None:
    directory, start = bytes(100), Far.base
    wide = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, len(directory), start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, start + len(directory), 1)
    narrow = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, len(directory), 0xFFFFFFFF, 0)
    tail = directory + wide + locator + narrow
    assert _problem_of_end(Far(tail), Far.base + len(tail)) is None
    cut_off = Far(tail.replace(struct.pack("<Q", start), struct.pack("<Q", start // 2)))
    assert _problem_of_end(cut_off, Far.base + len(tail)) is not None
