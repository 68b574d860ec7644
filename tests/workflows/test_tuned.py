import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowopt.errors import CannotWrite, UserError
from flowopt.ir.text import operator_census
from flowopt.workflows.optimize import optimize
from flowopt.workflows.pipelines import Pipeline
from flowopt.workflows.tuned import Tuned
from tests.workflows.parallel_model import PASSES, choices, program

PROGRAM = program()


def saved(folder: Path) -> Path:
    path = folder / "tuned.json"
    choices(PROGRAM, True, False).save(path)
    return path


class TestFile:
    def test_what_is_saved_is_loaded(self, tmp_path: Path) -> None:
        assert Tuned.load(saved(tmp_path)) == choices(PROGRAM, True, False)

    def test_the_form_is_that_of_its_documentation(self, tmp_path: Path) -> None:
        found = json.loads(saved(tmp_path).read_text())
        assert list(found) == ["schema_version", "model", "target", "runtime", "passes"]
        assert found["runtime"] == {"name": "onnxruntime", "version": "1.0", "threads": 2}
        assert found["passes"]["merge-parallel-linears"]["linear"] == {
            "input_shape": [5, 6],
            "outputs": [4, 4],
            "dtype": "float32",
            "has_bias": False,
            "merge": True,
            "gain": 1.125,
        }

    def test_saving_replaces_the_whole_file_and_leaves_no_other(self, tmp_path: Path) -> None:
        saved(tmp_path)
        choices(PROGRAM, False, False).save(tmp_path / "tuned.json")
        assert Tuned.load(tmp_path / "tuned.json") == choices(PROGRAM, False, False)
        assert [path.name for path in tmp_path.iterdir()] == ["tuned.json"]

    def test_a_folder_that_cannot_be_written_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(CannotWrite, match="cannot write"):
            choices(PROGRAM, True, False).save(tmp_path / "missing" / "tuned.json")

    def test_a_missing_file_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="cannot read measured choices"):
            Tuned.load(tmp_path / "tuned.json")

    @pytest.mark.parametrize(
        ("raw", "message"),
        [
            (b"", "cannot be read as JSON"),
            (b"[]", "schema_version is None"),
            (b'{"schema_version": 2}', "schema_version is 2, and this flowopt reads 1"),
            (b'{"schema_version": true}', "schema_version is True"),
            (b'{"schema_version": 1}', "the file lacks 'model'"),
            (b'{"schema_version": 1, "schema_version": 1}', "stands twice"),
            (b"[" * 100, "nested deeper"),
            (b" " * (16 << 20) + b"{}", "the limit is"),
        ],
        ids=["empty", "list", "newer", "boolean", "incomplete", "twice", "deep", "large"],
    )
    def test_a_file_of_another_kind_is_an_error(self, tmp_path: Path, raw: bytes, message: str) -> None:
        path = tmp_path / "tuned.json"
        path.write_bytes(raw)
        with pytest.raises(UserError, match=message) as caught:
            Tuned.load(path)
        assert "flowopt bench --reference MODEL --tune FILE" in caught.value.hint

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: d.update(more=1), "the file has 'more'"),
            (lambda d: d.update(model="0" * 63), "model is '0+[.]{3}, not a plain word"),
            (lambda d: d.update(target="c\x1bpu"), r"target is 'c..x1bpu'|target is 'c.x1bpu'"),
            (lambda d: d["runtime"].update(threads=0), "runtime/threads is 0"),
            (lambda d: d["runtime"].update(threads=True), "runtime/threads is True"),
            (lambda d: d["passes"].update({"fold-constants": {}}), "passes has 'fold-constants'"),
            (lambda d: d["passes"].update({PASSES: []}), "merge-parallel-linears is .*, not an object"),
            (lambda d: d["passes"][PASSES].update({"a b": {}}), "the name of a site is 'a b'"),
            (lambda d: choice(d).pop("gain"), "linear lacks 'gain'"),
            (lambda d: choice(d).update(gain=-1.0), "linear/gain is -1.0, not a positive number"),
            (lambda d: choice(d).update(gain=True), "linear/gain is True"),
            (lambda d: choice(d).update(merge=1), "linear/merge is 1, not true or false"),
            (lambda d: choice(d).update(has_bias="no"), "linear/has_bias is 'no'"),
            (lambda d: choice(d).update(dtype="int8"), "linear/dtype is 'int8', not one of float32"),
            (lambda d: choice(d).update(dtype=["float32"]), "linear/dtype is"),
            (lambda d: choice(d).update(outputs=[4]), "not the features of two layers or more"),
            (lambda d: choice(d).update(outputs=[4, 4.0]), "linear/outputs/1 is 4.0"),
            (lambda d: choice(d).update(input_shape=[]), "linear/input_shape is .*, not a list of sizes"),
            (lambda d: choice(d).update(input_shape=[5, -6]), "linear/input_shape/1 is -6"),
        ],
    )
    def test_wrong_content_is_an_error_that_names_the_place(
        self, tmp_path: Path, change: Callable[[Any], Any], message: str
    ) -> None:
        path = saved(tmp_path)
        found = json.loads(path.read_text())
        change(found)
        path.write_text(json.dumps(found))
        with pytest.raises(UserError, match=message):
            Tuned.load(path)


def choice(document: Any) -> Any:
    return document["passes"][PASSES]["linear"]


class TestUse:
    """Choices decide, in every combination: the two groups are predicted to gain nothing and a little."""

    @pytest.mark.parametrize(("first", "second", "left"), [(1, 1, 2), (1, 0, 4), (0, 1, 3), (0, 0, 5)])
    def test_a_build_follows_them(self, first: int, second: int, left: int) -> None:
        tuned = choices(PROGRAM, bool(first), bool(second))
        result = optimize(PROGRAM, passes=PASSES, dry_run=True, tuned=tuned)
        assert operator_census(result.program.graph)["aten.linear"] == left
        assert result.verdict
        assert result.report.warnings == ()

    def test_a_file_is_read(self, tmp_path: Path) -> None:
        result = optimize(PROGRAM, passes=PASSES, dry_run=True, tuned=saved(tmp_path))
        (applied,) = result.report.passes[-1].applied
        assert (applied.site, applied.summary.split(": ")[1]) == ("linear", "measured gain 1.12")

    def test_other_weights_of_the_same_model_keep_them(self) -> None:
        result = optimize(program(seed=1), passes=PASSES, dry_run=True, tuned=choices(PROGRAM, True, True))
        assert len(result.report.passes[-1].applied) == 2

    def test_another_model_is_an_error(self) -> None:
        with pytest.raises(UserError, match="measured for another model"):
            optimize(program(width=5), passes=PASSES, dry_run=True, tuned=choices(PROGRAM, True, True))

    def test_another_target_is_an_error(self) -> None:
        with pytest.raises(UserError, match="measured for cpu, and this build is for torch"):
            optimize(PROGRAM, target="torch", passes=PASSES, dry_run=True, tuned=choices(PROGRAM, True, True))

    def test_a_pipeline_without_the_pass_is_an_error(self) -> None:
        with pytest.raises(UserError, match="no pass that the measured choices are for") as caught:
            optimize(PROGRAM, passes="none", dry_run=True, tuned=choices(PROGRAM, True, True))
        assert "merge-parallel-linears" in caught.value.hint

    def test_choices_for_other_sizes_refuse_and_warn(self) -> None:
        result = optimize(PROGRAM, passes=PASSES, dry_run=True, tuned=choices(PROGRAM, True, True, rows=7))
        assert result.report.passes[-1].refusal_counts == {"stale-choice": 5}
        (warning,) = result.report.warnings
        assert warning.startswith("2 of 2 measured choices were not followed") and "linear, linear_2" in warning

    def test_choices_for_sites_that_are_gone_warn(self) -> None:
        tuned = choices(PROGRAM, True, True)
        gone = replace(tuned.merges[1], site="linear_9")
        result = optimize(PROGRAM, passes=PASSES, dry_run=True, tuned=replace(tuned, merges=(tuned.merges[0], gone)))
        (warning,) = result.report.warnings
        assert warning.startswith("1 of 2 measured choices were not followed") and warning.count("linear_9") == 1

    def test_a_choice_that_one_run_of_the_pass_followed_is_no_warning(self) -> None:
        tuned = choices(PROGRAM, True, True)
        result = optimize(PROGRAM, passes=f"{PASSES}:copies=false,{PASSES}", dry_run=True, tuned=tuned)
        assert result.report.warnings == ()

    def test_the_text_form_of_a_pipeline_leaves_them_out(self) -> None:
        followed = Pipeline(PASSES).following(choices(PROGRAM, True, True))
        assert followed.text() == Pipeline(PASSES).text()
        assert followed.passes != Pipeline(PASSES).passes
