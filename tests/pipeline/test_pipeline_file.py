"""Pipelines as TOML files: the same passes as the text form, and one clear refusal of everything else."""

from pathlib import Path
from typing import ClassVar

import pytest

import flowopt
from flowopt.errors import UserError
from flowopt.passes.fold.fold_batch_norm import FoldBatchNorm
from flowopt.passes.fold.fold_constants import FoldConstants
from flowopt.pipeline import pipeline_file
from flowopt.pipeline.pipeline_file import parse_pipeline_file
from flowopt.pipeline.registry import pass_class
from flowopt.rewrite import Exactness, RewritePass
from flowopt.rewrite.edit import Edit
from flowopt.rewrite.site import Site
from flowopt.workflows.pipelines import Pipeline
from tests.cli.models import post_norm

WHOLE = """
preset = "exact"
skip = ["simplify-shapes"]

[options.fold-constants]
max_growth = 4194304

[options.fold-batch-norm]
min_variance = 1
"""


@pytest.fixture
def written(tmp_path: Path) -> "Writer":
    return Writer(tmp_path / "my.toml")


class Writer:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, content: str | bytes) -> Path:
        self.path.write_bytes(content.encode() if isinstance(content, str) else content)
        return self.path


class Spoken(RewritePass[None]):
    """A pass with an option of every kind."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    loud: bool = False
    words: str = "none"
    count: int = 1

    def check(self, site: Site) -> None:
        site.refuse("not-constant", "never")

    def rewrite(self, edit: Edit, plan: None) -> str:
        return "never"


@pytest.fixture
def with_spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pipeline_file, "pass_class", lambda name: Spoken if name == "fold-batch-norm" else pass_class(name)
    )


def test_a_file_is_its_preset_without_what_it_skips_and_with_its_options(written: Writer) -> None:
    passes = parse_pipeline_file(written(WHOLE))
    wanted = [p.text() for p in Pipeline("exact", skip=["simplify-shapes"]).passes]
    assert [p.pass_name() for p in passes] == wanted
    assert FoldConstants(max_growth=4194304) in passes and FoldBatchNorm(min_variance=1.0) in passes


def test_a_list_runs_after_canonicalize_as_a_text_does(written: Writer) -> None:
    path = written('passes = ["fold-norm-affine", "fold-batch-norm"]')
    assert parse_pipeline_file(path) == list(Pipeline("fold-norm-affine,fold-batch-norm").passes)


def test_the_text_form_of_a_file_parses_back(written: Writer) -> None:
    pipeline = Pipeline(written(WHOLE))
    assert "fold-constants:max_growth=4194304" in pipeline.text()
    assert "fold-batch-norm:min_variance=1.0" in pipeline.text()
    assert Pipeline(pipeline.text()).passes == pipeline.passes


def test_skip_of_the_call_adds_to_that_of_the_file(written: Writer) -> None:
    names = [p.pass_name() for p in Pipeline(str(written(WHOLE)), skip=["fold-constants"]).passes]
    assert names == [p.text() for p in Pipeline("exact", skip=["simplify-shapes", "fold-constants"]).passes]


def test_a_file_is_taken_wherever_a_text_is(written: Writer) -> None:
    module, inputs = post_norm()
    program = flowopt.capture(module, inputs)
    path = written('passes = ["fold-constants"]\n[options.fold-constants]\nmax_growth = 7')
    wanted = "canonicalize-aten,fold-constants:max_growth=7"
    assert flowopt.explain(program, passes=str(path)).pipeline == wanted
    assert flowopt.explain(program, passes=path).pipeline == wanted
    result = flowopt.optimize(program, passes=str(path), dry_run=True, verify="off")
    assert result.report.pipeline == wanted
    assert [p.name for p in result.report.passes] == wanted.split(",")


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ("presets = 'exact'", "presets: is no key of a pipeline file", "did you mean preset"),
        ("[option.fold-constants]", "option: is no key of a pipeline file", "did you mean options"),
        ("zzz = 1", "zzz: is no key of a pipeline file", "the keys are preset, passes, skip, options"),
        ("", "gives neither preset nor passes", 'preset = "exact"'),
        ('skip = ["fold-constants"]', "gives neither preset nor passes", 'preset = "exact"'),
        ('preset = "exact"\npasses = ["fold-constants"]', "gives both preset and passes", "keep one"),
        ('preset = "exakt"', "preset: there is no preset 'exakt'", "did you mean exact"),
        ('preset = ["exact"]', "preset: is a list, not a name in quotes", 'preset = "exact"'),
        ("preset = 3", "preset: is 3 (a whole number), not a name in quotes", 'preset = "exact"'),
        ("passes = []", "passes: names no pass", "list some"),
        ('passes = "fold-constants"', "passes: is 'fold-constants' (a text in quotes), not a list", "passes = ["),
        ("passes = [1]", "passes: is a list, not a list of names", "passes = ["),
        ('passes = ["fold-constant"]', "passes: there is no pass 'fold-constant'", "did you mean fold-constants"),
        (
            'passes = ["fold-constants:max_growth=1"]',
            "passes: 'fold-constants:max_growth=1' is more than a name",
            "[options.fold-constants]",
        ),
        ('preset = "exact"\nskip = ["fold-constant"]', "skip: there is no pass 'fold-constant'", "fold-constants"),
        ('preset = "exact"\nskip = "fold-constants"', "skip: is 'fold-constants' (a text", 'skip = ["'),
        ('preset = "exact"\noptions = 1', "options: is 1 (a whole number), not a table", "[options.fold-constants]"),
        ('preset = "exact"\n[options.fold-constant]', "options.fold-constant: there is no pass", "fold-constants"),
        ('preset = "none"\n[options.fold-constants]', "options.fold-constants: is for a pass that is not in", "leave"),
        (
            'preset = "exact"\nskip = ["fold-constants"]\n[options.fold-constants]',
            "options.fold-constants: is for a pass that skip leaves out",
            "keep one",
        ),
        ('preset = "exact"\n[options]\nfold-constants = 4', "options.fold-constants: is 4 (a whole", "[options.fold-"),
        (
            'preset = "exact"\n[options.fold-constants]\nmax_grow = 4',
            "options.fold-constants.max_grow: the pass has no such option",
            "did you mean max_growth",
        ),
        (
            'passes = ["merge-parallel-linears"]\n[options.merge-parallel-linears]\nmeasured = 1',
            "options.merge-parallel-linears.measured: the pass has no such option",
            "its options:",
        ),
        (
            'preset = "exact"\n[options.canonicalize-aten]\nloud = true',
            "options.canonicalize-aten.loud: the pass has no such option",
            "it has none",
        ),
        (
            'preset = "exact"\n[options.fold-constants]\nmax_growth = "4MB"',
            "options.fold-constants.max_growth: is '4MB' (a text in quotes); it must be a whole number",
            "such as max_growth = 1048576",
        ),
        ('preset = "exact"\n[options.fold-constants]\nmax_growth = 4.5', "is 4.5 (a number); it must be a whole", ""),
        ('preset = "exact"\n[options.fold-constants]\nmax_growth = true', "is True (true or false); it must be", ""),
        (
            'preset = "exact"\n[options.fold-batch-norm]\nmin_variance = true',
            "must be a number",
            "min_variance = 1e-12",
        ),
        ('preset = "exact"\n[options.fold-batch-norm]\nmin_variance = []', "is a list; it must be a number", ""),
    ],
)
def test_what_a_file_may_not_say_names_file_and_key(written: Writer, content: str, message: str, hint: str) -> None:
    path = written(content)
    with pytest.raises(UserError) as caught:
        parse_pipeline_file(path)
    assert caught.value.message.startswith(str(path))
    assert message in caught.value.message
    assert caught.value.hint and hint in caught.value.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('preset = "exact"\nskip = [', "line 2, column 9, the end"),
        ('preset = "exact"\n\nskip: []', "line 3, column 5"),
        ('preset = "exact"\npreset = "none"\n', "line 2, column 16"),
        (b'preset = "\xff"', "byte 10 is not UTF-8"),
        ("n = " + "9" * 5000, "is not TOML"),
        ("n = " + "[" * 20_000, "is not TOML"),
    ],
)
def test_what_is_not_toml_is_told_with_its_place(written: Writer, content: str | bytes, message: str) -> None:
    path = written(content)
    with pytest.raises(UserError, match="is not TOML") as caught:
        parse_pipeline_file(path)
    assert caught.value.message.startswith(str(path)) and message in caught.value.message


def test_a_large_file_is_refused_unread(written: Writer) -> None:
    with pytest.raises(UserError, match="more than 65,536 bytes"):
        parse_pipeline_file(written(b"#" * 65_537))
    assert parse_pipeline_file(written(b'preset = "none"\n'.ljust(65_536, b"#")))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    for name in ("absent.toml", "folder.toml"):
        with pytest.raises(UserError, match=f"no pipeline file .*{name}"):
            Pipeline(str(tmp_path / name))


@pytest.mark.usefixtures("with_spoken")
def test_options_of_every_kind_arrive(written: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_file, "parse_pass", lambda text: Spoken() if "batch" in text else None)
    path = written('passes = ["fold-batch-norm"]\n[options.fold-batch-norm]\nloud = true\nwords = "yes"\ncount = -3')
    assert parse_pipeline_file(path)[1] == Spoken(loud=True, words="yes", count=-3)


@pytest.mark.usefixtures("with_spoken")
@pytest.mark.parametrize("text", ["a,b", "a:b", " a", "a "])
def test_a_text_that_the_text_form_could_not_repeat_is_refused(written: Writer, text: str) -> None:
    path = written(f'passes = ["fold-batch-norm"]\n[options.fold-batch-norm]\nwords = "{text}"')
    with pytest.raises(UserError, match="options.fold-batch-norm.words"):
        parse_pipeline_file(path)
