import hashlib
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
from tests.hostile.valid_files import lfs_pointer
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
    def test_are_read_by_default(self, archive: Path) -> None:
        assert tuple(flowopt.load(archive).run(torch.zeros(7, 3)).shape) == (7, 4)  # type: ignore[union-attr]  # bare

    def test_come_with_their_dimensions_and_digest(self, archive: Path) -> None:
        trusts: tuple[Literal["data", "code"], ...] = ("data", "code")
        for trust in trusts:
            program = load(str(archive), trust=trust)
            assert [(d.name, d.minimum, d.maximum) for d in program.dims] == [("x_0", 1, 64)]
            assert program.shape("output") == ("x_0", 4)
            assert program.provenance.source == "affine.pt2"
            assert program.provenance.sha256 == hashlib.sha256(archive.read_bytes()).hexdigest()
            assert tuple(program.run(torch.zeros(7, 3)).shape) == (7, 4)  # type: ignore[union-attr]  # bare

    def test_the_suffix_does_not_matter(self, archive: Path, tmp_path: Path) -> None:
        other = tmp_path / "affine.pt"
        other.write_bytes(archive.read_bytes())
        assert isinstance(load(other), Program)

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            ({"dims": {"batch": (1, 4)}}, r"\['dims'\] do not apply to the archive affine.pt2"),
            ({"shapes": {"x": "1x3"}}, r"\['shapes'\] do not apply to the archive affine.pt2"),
            ({"inputs": {"x": torch.zeros(1, 3)}}, r"\['inputs'\] do not apply to the archive affine.pt2"),
            ({"factory": "a:b"}, "holds its own graph"),
            ({"eval_mode": True}, "captured in one mode"),
        ],
    )
    def test_take_no_options_of_a_capture(self, archive: Path, options: dict[str, Any], complaint: str) -> None:
        with pytest.raises(UserError, match=complaint) as caught:
            load(archive, **options)
        assert caught.value.exit_code == 2

    def test_unknown_trust(self, archive: Path) -> None:
        with pytest.raises(UserError, match="must be data, weights or code"):
            load(archive, trust="blind")  # type: ignore[arg-type]  # the mistake

    @pytest.mark.parametrize("trust", ["data", "code"])
    @pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
    def test_that_are_cut_off_are_said_to_be(self, archive: Path, tmp_path: Path, kept: float, trust: Any) -> None:
        whole = archive.read_bytes()
        path = tmp_path / "cut.pt2"
        path.write_bytes(whole[: int(len(whole) * kept)])
        with pytest.raises(MalformedModel, match="cut.pt2 is cut off: a zip archive without its end"):
            load(path, trust=trust)

    @pytest.mark.parametrize("trust", ["data", "code"])
    def test_with_a_damaged_directory_are_refused(self, archive: Path, tmp_path: Path, trust: Any) -> None:
        whole = bytearray(archive.read_bytes())
        whole[whole.rindex(b"PK\x01\x02") + 1] ^= 0xFF
        path = tmp_path / "damaged.pt2"
        path.write_bytes(bytes(whole))
        with pytest.raises(MalformedModel, match="damaged.pt2"):
            load(path, trust=trust)


@pytest.mark.parametrize("trust", ["data", "weights", "code"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lfs_pointer(12345), "is a Git LFS pointer to a file of 12,345 bytes"),
        (b"<!DOCTYPE html>\n<html><body>Not found", "is an HTML page"),
        (b"\n\n <html>", "is an HTML page"),
        (b"", "is empty"),
        (b"\x00\x01\x02" * 100, "is no format that is known here"),
    ],
)
def test_says_what_a_file_is_instead(tmp_path: Path, content: bytes, message: str, trust: Any) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(content)
    with pytest.raises(MalformedModel, match=message) as caught:
        load(path, trust=trust)
    assert caught.value.exit_code == 65
    assert "model.pt2" in caught.value.message
    assert caught.value.hint


def test_a_refused_file_is_named_as_it_was_given(tmp_path: Path) -> None:
    # The message holds a line of Python with the file's name, to be pasted.
    path = tmp_path / "mobile.pt"
    path.write_bytes(b"\x30\0\0\0PTMF" + bytes(64))
    with pytest.raises(Untrusted) as caught:
        load(path)
    assert str(path) in caught.value.hint


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "other.pt2"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "{}")
    with pytest.raises(MalformedModel, match="zip archive of something else .its first entry: readme.txt"):
        load(path, trust="code")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
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
            ("nothing", "returns NoneType"),
            ("bare_tensor", "args is Tensor, not a tuple"),
        ],
    )
    def test_wrong_returns_are_named(self, name: str, message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            load(f"{HERE}:{name}")
        assert caught.value.hint

    def test_a_module_alone_needs_inputs(self) -> None:
        with pytest.raises(UserError, match="says nothing about its inputs") as caught:
            load(f"{HERE}:module_alone")
        assert caught.value.retry == (("--shape", "x=1x3"),)
        assert load(f"{HERE}:module_alone", shapes={"x": "2x3"}).shape("x") == (2, 3)

    def test_inputs_replace_those_of_a_factory_and_dimensions_stay(self) -> None:
        program = load(f"{HERE}:dictionary", shapes={"x": "4x3"})
        assert [(d.name, d.maximum, d.traced) for d in program.dims] == [("batch", 64, 4)]

    def test_a_factory_is_not_given_to_another(self) -> None:
        with pytest.raises(UserError, match="is a factory already"):
            load(f"{HERE}:pair", factory=f"{HERE}:pair")

    @pytest.mark.parametrize("text", ["tests.program.nowhere:pair", "nowhere_at_all:pair", "tests.nowhere.deep:pair"])
    def test_no_such_module(self, text: str) -> None:
        with pytest.raises(ModelNotFound, match="no module") as caught:
            load(text)
        assert f"write {text.partition(':')[0].replace('.', '/')}.py here" in caught.value.hint

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
