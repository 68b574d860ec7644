"""Rows of norm folding: what is left of means and gains in known architectures, and why the rest is refused."""

import tempfile
from functools import cache, partial
from pathlib import Path

import flowopt
from flowopt.errors import FlowoptError
from flowopt.program.program import Program
from flowopt.report.passes import PassRecord
from flowopt.workflows.pipelines import Pipeline
from tests.goals.row import Measured, Row, counted, problem_of
from tests.passes.test_norm_property import FIRING, TOGETHER, fired_share
from tests.zoo.architectures import ARCHITECTURES

WITHOUT_MEANS = ("gpt2", "opt", "vit", "clip-text")
POST_NORM = ("bert", "roberta", "distilbert", "bart")
# Models whose blocks read their stream through norms alone.
PRE_NORM = (
    "gpt2", "opt", "gpt-neox", "llama", "qwen2", "qwen3", "mistral", "gemma", "phi", "cohere", "mixtral", "mamba", "t5",
    "vit", "deit", "clip-text", "clip-vision", "siglip-vision", "whisper-encoder",
)  # fmt: skip
# Refusals that name a reader that is not linear (CLIP's first norm is added to), or no reader.
_UNFOLDED = {"not-linear-reader", "post-norm", "graph-output", "no-affine", "not-a-norm"}
_MOST_REFUSED = 3
_GRAPHS = 300


def program_of(name: str) -> Program:
    """An architecture, captured."""
    model = ARCHITECTURES[name]()
    return flowopt.capture(model.module, (), model.kwargs, dynamic=model.dynamic, dims=model.dims)


@cache
def _records(name: str) -> dict[str, PassRecord]:
    return {record.name: record for record in Pipeline("exact").run(program_of(name), verify="off").records}


def outcome_of(name: str) -> str:
    """Empty where an architecture is equivalent on the CPU, else what happened."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = flowopt.optimize(program_of(name), target="cpu", folder=Path(folder) / "out")
    except FlowoptError as error:
        return f"refused: {error.message}"
    undone = [record.name for record in result.report.passes if record.outcome == "reverted"]
    if undone:
        return f"undone: {', '.join(undone)}"
    return "" if result.verdict.outcome == "equivalent" else str(result.verdict.outcome.value)


def _equivalent() -> Measured:
    outcomes = {name: outcome_of(name) for name in ARCHITECTURES}
    good, short = counted(outcomes)
    refused = [name for name, outcome in outcomes.items() if outcome.startswith("refused")]
    is_met = len(refused) <= _MOST_REFUSED and good + len(refused) == len(ARCHITECTURES)
    return Measured(f"{good} of {len(ARCHITECTURES)} equivalent, {len(refused)} refused", is_met, short)


def _means(name: str) -> int:
    """Means that a model's file computes over features: of its layer norms, and by themselves."""
    with tempfile.TemporaryDirectory() as folder:
        result = flowopt.optimize(program_of(name), target="cpu", folder=Path(folder) / "out")
        assert result.artifact is not None, f"{name}: no artifact"
        census = flowopt.inspect_artifact(Path(folder) / "out").census
    return census.get("LayerNormalization", 0) + census.get("ReduceMean", 0)


def _mean() -> Measured:
    wanted = dict.fromkeys(WITHOUT_MEANS, 0) | {"whisper-encoder": 1}
    found = {name: _means(name) for name in wanted}
    short = tuple(f"{name}: {found[name]} means, not {count}" for name, count in wanted.items() if found[name] != count)
    codes = _records("clip-vision")["fold-norm-mean"].refusal_counts
    if set(codes) - {"post-norm"} != {"stream-tapped"}:
        short += (f"clip-vision: refused {codes}",)
    return Measured(f"{len(wanted) + 1 - len(short)} of {len(wanted) + 1} as they should be", not short, short)


def check_gains(name: str) -> None:
    """Every gain of a pre-norm model folds, or its refusal names a reader that is not linear, or none."""
    record = _records(name)["fold-norm-affine"]
    other = [refusal for refusal in record.refused if refusal.code not in _UNFOLDED]
    assert not other, f"{other[0].site} refused {other[0].code}: {other[0].message}"
    assert record.applied, "no gain folds"


def _affine() -> Measured:
    good, short = counted({name: problem_of(partial(check_gains, name)) for name in PRE_NORM})
    return Measured(f"{good} of {len(PRE_NORM)} models", good == len(PRE_NORM), short)


def check_post_norms(name: str) -> None:
    """Every layer norm inside of a post-norm model's blocks keeps its mean, and the refusal says why."""
    record = _records(name)["fold-norm-mean"]
    codes = record.refusal_counts
    assert set(codes) == {"post-norm"}, f"refused {codes}"


def _refusals() -> Measured:
    good, short = counted({name: problem_of(partial(check_post_norms, name)) for name in POST_NORM})
    return Measured(f"{good} of {len(POST_NORM)} refused post-norm throughout", good == len(POST_NORM), short)


def _property() -> Measured:
    try:
        share = fired_share(_GRAPHS // TOGETHER)
    except AssertionError as error:
        return Measured("a mismatch", False, (str(error).splitlines()[0],))
    return Measured(f"{_GRAPHS} graphs, 0 mismatches, {share:.0%} fire", share >= FIRING)


ROWS = (
    Row("zoo.equivalent", f"all equivalent, at most {_MOST_REFUSED} refused", _equivalent, is_long=True),
    Row("norm.mean", "0 means; Whisper 1; CLIP vision stream-tapped", _mean, is_long=True),
    Row("norm.affine", f"{len(PRE_NORM)} of {len(PRE_NORM)}", _affine, is_long=True),
    Row("norm.refusals", f"{len(POST_NORM)} of {len(POST_NORM)}", _refusals, is_long=True),
    Row("norm.property", f"0 mismatches, at least {FIRING:.0%} fire", _property, is_long=True),
)
