"""Passes of other packages: found without an import, used like flowopt's own, and every way in which they fail."""

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from flowopt.errors import UserError
from flowopt.pipeline.presets import PRESETS
from flowopt.pipeline.registry import entries, pass_class, pass_entry
from flowopt.workflows.pipelines import Pipeline
from tests.cli.command import flowopt, model
from tests.pipeline.plugin_packages import MODULES, POINTS, install_by_hand

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs packages for one test."""
    folder = tmp_path / "packages"
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)

    def installed(package: str, points: Mapping[str, str], modules: Mapping[str, str]) -> None:
        install_by_hand(folder, package, points, modules)
        monkeypatch.syspath_prepend(str(folder))
        entries.cache_clear()

    yield installed
    monkeypatch.undo()
    entries.cache_clear()
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(folder) in str(sys.modules[name].__file__):
            del sys.modules[name]


def test_an_installed_pass_is_known_by_its_source_and_not_imported(
    install: Install, capfd: pytest.CaptureFixture[str]
) -> None:
    install("clamping-passes", POINTS, MODULES)
    entry = entries()["clamp-relu"]
    assert (entry.package, entry.exactness, entry.problem) == ("clamping-passes 1.2", "exact", "")
    assert entry.summary == "Write a relu as a clamp."
    assert entry.documentation.startswith("relu(x) = max(x, floor)")
    assert "clamping_passes" not in sys.modules
    assert capfd.readouterr().err == ""


def test_it_is_used_in_text_files_and_lists(install: Install, tmp_path: Path) -> None:
    install("clamping-passes", POINTS, MODULES)
    wanted = "canonicalize-aten,clamp-relu:floor=0.5"
    file = tmp_path / "my.toml"
    file.write_text('passes = ["clamp-relu"]\n[options.clamp-relu]\nfloor = 0.5')
    for pipeline in (Pipeline("clamp-relu:floor=0.5"), Pipeline(file), Pipeline(["clamp-relu:floor=0.5"])):
        assert pipeline.text() == wanted
    assert pass_class("clamp-relu").__module__ == "clamping_passes.relu.clamp_relu"


def test_the_list_names_the_package_and_a_name_shows_its_documentation(install: Install) -> None:
    install("clamping-passes", POINTS, MODULES)
    listed = flowopt("passes")
    assert listed.code == 0
    line = next(line for line in listed.out.splitlines() if line.startswith("clamp-relu"))
    assert "Write a relu" in line and "clamping-passes" in line
    shown = flowopt("passes", "clamp-relu")
    assert shown.code == 0
    assert shown.first == "clamp-relu (exact): Write a relu as a clamp."
    for part in ("brought by the package clamping-passes 1.2", "Numerical effect", "floor", "What is taken for zero."):
        assert part in shown.out


def test_without_packages_the_list_has_no_column_for_them(install: Install) -> None:
    assert "package" not in flowopt("passes").out
    install("clamping-passes", POINTS, MODULES)
    assert "package" in flowopt("passes").out


@pytest.mark.parametrize("name", ["fold-batch-norm", "clamp-relu"])
def test_a_name_of_two_packages_is_an_error_naming_both_where_it_is_asked_for(install: Install, name: str) -> None:
    install("clamping-passes", POINTS, MODULES)
    install("other-passes", {name: "other_passes:Other"}, {"other_passes": ""})
    first = "flowopt" if name == "fold-batch-norm" else "clamping-passes 1.2"
    for asked in (pass_entry, pass_class, Pipeline):
        with pytest.raises(UserError, match=f"two packages bring it, {first} and other-passes 1.2") as caught:
            asked(name)
        assert f"--skip {name}" in caught.value.hint
    ran = flowopt("passes", name)
    assert (ran.code, ran.out) == (2, "")


def test_a_clash_leaves_other_names_and_commands_alone_and_is_listed(install: Install) -> None:
    install("other-passes", {"fold-batch-norm": "other_passes:Other"}, {"other_passes": ""})
    assert Pipeline("fold-constants").text() == "canonicalize-aten,fold-constants"
    assert "fold-batch-norm" not in Pipeline("exact", skip=["fold-batch-norm"]).text()
    ran = flowopt("passes")
    assert ran.code == 0
    assert "two packages bring it" in " ".join(ran.out.split())
    refused = flowopt("explain", model("broken"))
    assert refused.code == 2 and "fold-batch-norm" in refused.err and "other-passes" in refused.err


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("class Other: pass", "AttributeError"),
        ("def broken(:", "SyntaxError"),
    ],
)
def test_a_package_that_cannot_be_imported_is_named_when_its_pass_is_used(
    install: Install, code: str, why: str
) -> None:
    install("failing-passes", {"fail-early": "failing_passes:FailEarly"}, {"failing_passes": code})
    assert Pipeline("exact").passes
    listed = flowopt("passes")
    assert listed.code == 0 and "fail-early" in listed.out and "failing-passes" in listed.out
    ran = flowopt("explain", model("broken"), "--passes", "fail-early")
    assert (ran.code, ran.out) == (2, "")
    assert "the pass 'fail-early' of the package failing-passes 1.2 cannot be imported" in ran.err
    assert why in ran.err and "--skip fail-early" in ran.err


def test_a_module_that_is_missing_is_listed_with_a_note(install: Install) -> None:
    install("lost-passes", {"lost-one": "lost_passes.deep.er:LostOne"}, {"lost_passes": ""})
    entry = entries()["lost-one"]
    assert (entry.exactness, entry.path, entry.problem) == ("unknown", None, "")
    assert "its source is not here" in entry.summary
    assert "its source is not here" in flowopt("passes", "lost-one").out


@pytest.mark.parametrize(
    ("point", "problem"),
    [
        ({"Clamp_Relu": "clamping_passes:ClampRelu"}, "no name in lower case with dashes"),
        ({"clamp:relu": "clamping_passes:ClampRelu"}, "no name in lower case with dashes"),
        ({next(iter(PRESETS)): "clamping_passes:ClampRelu"}, "the name of a preset"),
        ({"clamp-relu": "clamping_passes"}, "is not module:Class"),
        ({"clamp-relu": "clamping_passes:a.b"}, "is not module:Class"),
    ],
)
def test_a_declaration_that_cannot_work_is_told_with_its_package(
    install: Install, point: dict[str, str], problem: str
) -> None:
    install("odd-passes", point, {})
    (name,) = point
    with pytest.raises(UserError, match=problem) as caught:
        pass_class(name)
    assert "odd-passes 1.2" in caught.value.message
    assert flowopt("passes").code == 0


def test_a_class_of_another_name_or_kind_is_refused(install: Install) -> None:
    points = {
        "other-name": "clamping_passes.relu.clamp_relu:ClampRelu",
        "no-pass": "clamping_passes.relu.clamp_relu:Any",
        "no-class": "clamping_passes.relu.clamp_relu:aten",
    }
    install("clamping-passes", points, MODULES)
    with pytest.raises(UserError, match="is called 'clamp-relu'") as caught:
        pass_class("other-name")
    assert 'clamp-relu = "clamping_passes.relu.clamp_relu:ClampRelu"' in caught.value.hint
    for name in ("no-pass", "no-class"):
        with pytest.raises(UserError, match="is no pass"):
            pass_class(name)


def test_a_name_that_a_package_declares_twice_is_refused(install: Install, tmp_path: Path) -> None:
    install("clamping-passes", POINTS, MODULES)
    points = next((tmp_path / "packages").glob("*.dist-info")) / "entry_points.txt"
    points.write_text(points.read_text() + "clamp-relu = clamping_passes:Other\n")
    entries.cache_clear()
    with pytest.raises(UserError, match="the package clamping-passes 1.2 declares it twice"):
        pass_class("clamp-relu")


@pytest.mark.parametrize("content", [b"[flowopt.passes]\nno value\n", b"\xff\xfe"])
def test_metadata_that_cannot_be_read_names_its_package(install: Install, tmp_path: Path, content: bytes) -> None:
    install("clamping-passes", POINTS, MODULES)
    (next((tmp_path / "packages").glob("*.dist-info")) / "entry_points.txt").write_bytes(content)
    entries.cache_clear()
    ran = flowopt("passes")
    assert (ran.code, ran.out) == (2, "")
    assert "the entry points of the installed package clamping-passes cannot be read" in ran.err
