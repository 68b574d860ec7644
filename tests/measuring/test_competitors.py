"""Competitors: what is made, and what is said where one cannot be."""

import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from flowopt.errors import MissingDependency, UserError
from flowopt.measuring import competitors
from flowopt.measuring.competitors import COMPETITORS, PLAIN, prepared, require_known
from flowopt.measuring.contender import Contender
from flowopt.sandbox.process import Ended
from tests.measuring.conftest import TINY


def answer(monkeypatch: pytest.MonkeyPatch, **endings: Ended) -> list[str]:
    """Tools end as told without running, the others write a file; returns who was started."""
    started: list[str] = []

    def run(command: list[str], *_: object, **__: object) -> Ended:
        name, target = command[-3], command[-1]
        started.append(name)
        if name not in endings:
            Path(target).write_bytes(b"model")
        return endings.get(name, Ended(0, b"", ""))

    monkeypatch.setattr(competitors, "run_process", run)
    return started


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(UserError, match="no competitor 'tvm'") as caught:
        require_known(("eager", "tvm"))
    assert "eager, compile, ort, " in caught.value.hint


def test_a_package_that_is_not_installed_is_named_with_its_line_for_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(competitors, "_is_installed", lambda package: package != "onnxslim")
    require_known(("eager", "ort"))
    with pytest.raises(MissingDependency, match="--vs onnxslim needs onnxslim") as caught:
        require_known(("eager", "onnxslim"))
    assert "pip install onnxslim" in caught.value.hint


def test_the_plain_export_of_a_factory_is_made_at_both_opsets_and_kept(
    plain_exports: tuple[Contender, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [(one.name, one.kind, one.is_plain) for one in plain_exports] == [
        (name, "onnxruntime", True) for name in PLAIN
    ]
    models = [onnx.load(one.path) for one in plain_exports]
    assert models[1].opset_import[0].version == 23 != models[0].opset_import[0].version
    assert [i.name for i in models[0].graph.input] == ["ids", "mask"]
    folder = Path(plain_exports[0].path).parent.parent
    assert sorted(p.name for p in folder.iterdir()) == sorted(PLAIN)
    started = answer(monkeypatch)
    assert tuple(prepared(PLAIN, TINY, folder)[0]) == plain_exports
    assert started == []


def test_what_runs_the_reference_itself_needs_nothing_made(tmp_path: Path) -> None:
    found, failures = prepared(("eager", "compile"), TINY, tmp_path)
    assert [(one.kind, one.path) for one in found] == [("eager", TINY), ("compile", TINY)]
    assert failures == {} and list(tmp_path.iterdir()) == []


def test_openvino_reads_the_plain_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch)
    (found,), _ = prepared(("openvino",), TINY, tmp_path)
    assert (found.kind, Path(found.path).relative_to(tmp_path).as_posix()) == ("openvino", "ort/model.onnx")


def test_a_tool_that_raises_or_crashes_is_a_failure_with_a_reason_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endings = {"onnxsim": Ended(-11, b"", ""), "onnxslim": Ended(1, b"", "Traceback\n  x\nValueError: not this one\n")}
    answer(monkeypatch, **endings)
    found, failures = prepared(("onnxslim", "onnxsim", "onnxscript"), TINY, tmp_path)
    assert [one.name for one in found] == ["onnxscript"]
    assert failures == {
        "onnxslim": "it ended with code 1: ValueError: not this one",
        "onnxsim": "it crashed with SIGSEGV",
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["onnxscript", "ort"]


def test_an_export_that_fails_is_tried_once_and_stops_only_what_starts_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = answer(monkeypatch, ort=Ended(1, b"", "RuntimeError: no operator\n"))
    found, failures = prepared(("ort", PLAIN[1], "onnxslim", "openvino", "eager"), TINY, tmp_path)
    assert [one.name for one in found] == [PLAIN[1], "eager"]
    reason = "torch.onnx.export: it ended with code 1: RuntimeError: no operator"
    assert failures == dict.fromkeys(("ort", "onnxslim", "openvino"), reason)
    assert started == ["ort", PLAIN[1]]


def test_a_tool_without_a_file_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(competitors, "run_process", lambda *_, **__: Ended(0, b"", ""))
    assert prepared(("ort",), TINY, tmp_path)[1] == {"ort": "torch.onnx.export: ort wrote no file"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, one in COMPETITORS.items() if one.source == "export" and one.make])
def test_each_tool_makes_a_model_of_the_export(name: str, exported: Path, tmp_path: Path) -> None:
    package = COMPETITORS[name].package
    assert package is not None
    if not competitors._is_installed(package):
        pytest.skip(f"{package} is not installed")
    (tmp_path / "ort").symlink_to(exported.parent)
    (found,), failures = prepared((name,), TINY, tmp_path)
    assert failures == {}
    assert [i.name for i in onnx.load(found.path).graph.input] == ["ids", "mask"]


def test_the_tools_start_without_torch_in_the_parent() -> None:
    code = "import sys, flowopt.measuring.competitors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
