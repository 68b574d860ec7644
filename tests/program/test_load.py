import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import flowopt
from flowopt.errors import CaptureError, MalformedModel, MissingDependency, ModelNotFound, Untrusted, UserError
from flowopt.program.loading.load import load
from flowopt.program.program import Program
from tests.program.models import Affine

HERE = "tests.program.factories"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archives") / "affine.pt2"
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(Affine().eval(), (torch.zeros(5, 3),), dynamic_shapes={"x": {0: batch}})
    torch.export.save(exported, path)
    return path


class TestArchives:
    def test_need_trust_in_code(self, archive: Path) -> None:
        trusts: tuple[Literal["data", "weights"], ...] = ("data", "weights")
        for trust in trusts:
            with pytest.raises(Untrusted, match="refused affine.pt2") as caught:
                load(archive, trust=trust)
            assert caught.value.exit_code == 77
            assert "--trust code" in caught.value.hint and "package.module:factory" in caught.value.hint

    def test_trust_is_data_by_default(self, archive: Path) -> None:
        with pytest.raises(Untrusted):
            flowopt.load(archive)

    def test_come_with_their_dimensions_and_digest(self, archive: Path) -> None:
        program = load(str(archive), trust="code")
        assert [(d.name, d.minimum, d.maximum) for d in program.dims] == [("x_0", 1, 64)]
        assert program.shape("output") == ("x_0", 4)
        assert program.provenance.source == "affine.pt2"
        assert program.provenance.sha256 is not None and len(program.provenance.sha256) == 64
        assert tuple(program.run(torch.zeros(7, 3)).shape) == (7, 4)  # type: ignore[union-attr]  # bare

    def test_the_suffix_does_not_matter(self, archive: Path, tmp_path: Path) -> None:
        other = tmp_path / "affine.pt"
        other.write_bytes(archive.read_bytes())
        assert isinstance(load(other, trust="code"), Program)

    def test_take_no_capture_options(self, archive: Path) -> None:
        with pytest.raises(UserError, match=r"\['dims'\] do not apply to the archive affine.pt2") as caught:
            load(archive, trust="code", dims={"batch": (1, 4)})
        assert caught.value.exit_code == 2
        with pytest.raises(UserError, match="captured in one mode"):
            load(archive, trust="code", eval_mode=True)

    def test_unknown_trust(self, archive: Path) -> None:
        with pytest.raises(UserError, match="must be data, weights or code"):
            load(archive, trust="blind")  # type: ignore[arg-type]  # the mistake


def pickled_module() -> bytes:
    file = io.BytesIO()
    torch.save(Affine(), file)
    return file.getvalue()


def pickled_weights() -> bytes:
    file = io.BytesIO()
    torch.save(Affine().state_dict(), file)
    return file.getvalue()


def old_pickle() -> bytes:
    file = io.BytesIO()
    torch.save(Affine().state_dict(), file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def torch_script() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(Affine().eval(), torch.zeros(5, 3)), file)
    return file.getvalue()


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("trust", ["data", "code"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: LFS_POINTER, "is a Git LFS pointer, not the model\n  try   git lfs pull"),
        (lambda: b"<!DOCTYPE html>\n<html><body>Not found", "is an HTML or XML page"),
        (lambda: b"\n\n <html>", "is an HTML or XML page"),
        (lambda: b"", "is empty"),
        (lambda: b"\x00\x01\x02" * 100, "is no zip archive"),
        (pickled_module, "is a pickle of torch.save"),
        (pickled_weights, "is a pickle of torch.save"),
        (old_pickle, "is no zip archive"),
        (torch_script, "is TorchScript"),
    ],
)
def test_says_what_a_file_is_instead(tmp_path: Path, content: Any, message: str, trust: Any) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(content())
    with pytest.raises(MalformedModel, match=message) as caught:
        load(path, trust=trust)
    assert caught.value.exit_code == 65
    assert "model.pt2" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_a_truncated_archive(archive: Path, tmp_path: Path, kept: float) -> None:
    whole = archive.read_bytes()
    path = tmp_path / "cut.pt2"
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(MalformedModel, match="cut.pt2 is (no|a damaged) zip archive"):
        load(path, trust="code")


def test_a_zip_with_a_damaged_directory(archive: Path, tmp_path: Path) -> None:
    whole = bytearray(archive.read_bytes())
    whole[whole.rindex(b"PK\x01\x02") + 1] ^= 0xFF
    path = tmp_path / "damaged.pt2"
    path.write_bytes(bytes(whole))
    with pytest.raises(MalformedModel, match="damaged.pt2"):
        load(path, trust="code")


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "other.pt2"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", json.dumps({}))
    with pytest.raises(MalformedModel, match="torch.export cannot load other.pt2"):
        load(path, trust="code")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(MalformedModel, match="is a folder"):
        load(tmp_path, trust="code")


def test_no_such_file() -> None:
    with pytest.raises(ModelNotFound, match="no such file: nowhere/model.pt2") as caught:
        load("nowhere/model.pt2", trust="code")
    assert caught.value.exit_code == 66


class TestFactories:
    @pytest.mark.parametrize("name", ["pair", "triple", "dictionary", "program"])
    def test_every_form_is_captured(self, name: str) -> None:
        program = load(f"{HERE}:{name}")
        assert [i.name for i in program.inputs] == ["x"]
        assert [d.name for d in program.dims] == (["batch"] if name == "dictionary" else [])

    def test_options_replace_those_of_a_dictionary(self) -> None:
        assert load(f"{HERE}:dictionary", dims={"batch": (2, 8)}).dims[0].maximum == 8

    def test_options_make_a_pair_dynamic(self) -> None:
        program = load(f"{HERE}:pair", dynamic={"x": {0: "rows"}})
        assert program.shape("x") == ("rows", 3)

    def test_a_program_takes_no_options(self) -> None:
        with pytest.raises(UserError, match=r"returns a captured Program: \['dims'\]"):
            load(f"{HERE}:program", dims={"batch": (1, 2)})

    def test_train_mode_needs_eval_mode(self) -> None:
        with pytest.raises(CaptureError, match="train mode"):
            load(f"{HERE}:training")
        assert isinstance(load(f"{HERE}:training", eval_mode=True), Program)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("misspelled", r"unknown keys \['inputs'\]"),
            ("module_alone", "returns Affine"),
            ("nothing", "returns NoneType"),
            ("bare_tensor", "args is Tensor, not a tuple"),
        ],
    )
    def test_wrong_returns_are_named(self, name: str, message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            load(f"{HERE}:{name}")
        assert caught.value.hint

    @pytest.mark.parametrize("text", ["tests.program.nowhere:pair", "nowhere_at_all:pair", "tests.nowhere.deep:pair"])
    def test_no_such_module(self, text: str) -> None:
        with pytest.raises(ModelNotFound, match="no module"):
            load(text)

    @pytest.mark.parametrize("name", ["nowhere", "NOT_A_FUNCTION"])
    def test_no_such_function(self, name: str) -> None:
        with pytest.raises(ModelNotFound, match=f"has no function '{name}'"):
            load(f"{HERE}:{name}")

    def test_a_module_that_lacks_one_of_its_own_imports_says_which(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A prefix of the module's own name, which must not be taken for the module.
        (tmp_path / "absent_thing_model.py").write_text("import absent_thing\n")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(MissingDependency, match="'absent_thing', which is not installed"):
            load("absent_thing_model:build")

    def test_what_the_factory_raises_is_told_with_its_place(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "raising_model.py").write_text("def build():\n    raise ValueError('no weights')\n")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UserError, match="raised ValueError: no weights") as refused:
            load("raising_model:build")
        assert refused.value.why.startswith("raising_model.py:2")

    def test_the_current_folder_is_searched_and_the_path_left_as_it_was(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a_local_model.py").write_text("from tests.program.factories import pair as build\n")
        monkeypatch.chdir(tmp_path)
        before = list(sys.path)
        assert isinstance(load("a_local_model:build"), Program)
        assert sys.path == before
