"""Rows of the spine: a trained model in, a verified ONNX artifact out."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import flowopt
from flowopt.lowering.targets import TARGETS
from flowopt.program.program import Program
from flowopt.report.report import Report
from flowopt.verification.evidence import collect_evidence
from flowopt.verification.inputs.cases import case_of
from flowopt.verification.inputs.regimes import normal
from flowopt.verification.verify_outputs import verify_outputs
from tests.benchmarks.minilm_cost import measured_cost
from tests.goals import help as help_time
from tests.goals import miscompiles, planted
from tests.goals.row import Measured, Row, counted, problem_of
from tests.zoo.models import ZOO

_NO_BATCH_NORM = ("resnet", "mobilenet-v2")
_GAINS_FOLD = ("gpt2", "vit", "llama", "t5")
_ANCHOR_WORDS = {"fold-batch-norm": ("batch_norm",), "fold-norm-affine": ("layer_norm", "rms_norm", "rsqrt")}
_COST_TIMES, _COST_MEMORY = 3.0, 6.0
_HELP_SECONDS = 0.5


def captured(name: str) -> Program:
    """A zoo model as a Program."""
    model = ZOO[name]()
    return flowopt.capture(model.module, (), model.kwargs, dynamic=model.dynamic, dims=model.dims)


def _models() -> Measured:
    good, short = counted({name: problem_of(partial(_check_model, name)) for name in ZOO})
    return Measured(f"{good} of {len(ZOO)} equivalent", good == len(ZOO), short)


def _check_model(name: str) -> None:
    program = captured(name)
    with tempfile.TemporaryDirectory() as folder:
        result = flowopt.optimize(program, target=TARGETS["cpu"].name, folder=Path(folder) / "model")
        assert result.verdict.outcome == "equivalent", f"{result.report.outcome}: {result.verdict.reason}"
        assert not result.report.warnings, result.report.warnings[0]
        assert result.artifact is not None
        _check_extremes(program, result.artifact)
    _check_folds(name, result.report)


def _check_extremes(program: Program, artifact: flowopt.Artifact) -> None:
    """Each free dimension at its maximum with the others small."""
    for dim in program.dims:
        sizes = {d.name: d.maximum if d is dim and d.maximum else max(2, d.minimum) for d in program.dims}
        case = case_of(program, f"longest-{dim.name}", sizes, normal, seed=0)
        verdict = verify_outputs(collect_evidence(program, cases=(case,)), artifact.run_named)
        assert verdict, f"{case.label}: {verdict.reason}"


def _check_folds(name: str, report: Report) -> None:
    left = {op: n for op, n in report.census_after.items() if "batch_norm" in op}
    assert name not in _NO_BATCH_NORM or not left, f"batch norms left: {left}"
    kept = {r.code for r in report.refusals("fold-norm-affine")} - {"graph-output"}
    assert name not in _GAINS_FOLD or not kept, f"gains not folded: {kept}"
    assert name not in _GAINS_FOLD or report.applied_count("fold-norm-affine") > 0, "no gain folded"


def _miscompiles() -> Measured:
    good, short = counted({name: problem_of(check) for name, check in miscompiles.ROWS.items()})
    return Measured(f"{good} of {len(miscompiles.ROWS)} right", good == len(miscompiles.ROWS) == 6, short)


def _planted() -> Measured:
    caught, missed = counted({name: problem_of(_caught(make)) for name, make in planted.WRONG.items()})
    kept, accused = counted({name: problem_of(_kept(make)) for name, make in planted.RIGHT.items()})
    wrong, right = len(planted.WRONG), len(planted.RIGHT)
    value = f"{caught} of {wrong} caught, {right - kept} of {right} accused"
    return Measured(value, caught == wrong >= 10 and kept == right >= 10, (*missed, *accused))


def _caught(make: Callable[[], planted.Plant]) -> Callable[[], None]:
    def check() -> None:
        plant = make()
        run = flowopt.Pipeline([plant.rewrite_pass]).run(plant.program)
        record = run.records[-1]
        assert record.applied, "the planted pass did not fire"
        assert record.outcome == "reverted", f"not caught: {record.outcome}"
        assert record.reason, "caught without a reason"

    return check


def _kept(make: Callable[[], planted.Plant]) -> Callable[[], None]:
    def check() -> None:
        plant = make()
        record = flowopt.Pipeline([plant.rewrite_pass]).run(plant.program).records[-1]
        assert record.applied, "the planted pass did not fire"
        assert record.outcome == "kept", f"accused: {record.reason}"

    return check


def _help() -> Measured:
    help_seconds, empty_seconds = help_time.measure()
    above = help_seconds - empty_seconds
    return Measured(f"{above:.2f} s above an empty interpreter", above <= _HELP_SECONDS)


def _cost() -> Measured:
    cost = measured_cost()
    value = f"{cost.times:.2f} x the time ({cost.spread}), {cost.memory:.1f} x the model's bytes"
    return Measured(value, cost.times <= _COST_TIMES and cost.memory <= _COST_MEMORY)


def _sites() -> Measured:
    good, short = counted({name: problem_of(partial(_check_sites, name)) for name in ZOO})
    return Measured(f"{good} of {len(ZOO)} models", good == len(ZOO), short)


def _check_sites(name: str) -> None:
    """Sites are counted on the graph that each pass gets, by operator names, without asking the pass."""
    from flowopt.ir.text import operator_census
    from flowopt.pipeline.runner import run_passes
    from flowopt.pipeline.text import parse_pass

    program = run_passes(captured(name), [parse_pass("canonicalize-aten")]).program
    for pass_name, words in _ANCHOR_WORDS.items():
        census = operator_census(program.graph)
        anchors = sum(n for op, n in census.items() if any(word in op for word in words))
        run = run_passes(program, [parse_pass(pass_name)])
        (record,) = run.records
        decided = len(record.applied) + len(record.refused)
        assert decided == anchors, f"{pass_name}: {decided} sites decided, {anchors} anchors in the graph"
        program = run.program


ROWS = (
    Row("spine.models", "9 of 9 equivalent; batch norms and gains folded", _models, is_long=True),
    Row("spine.miscompiles", "6 of 6 right", _miscompiles),
    Row("spine.planted", "10 of 10 caught, 0 of 10 accused", _planted),
    Row("spine.help", f"at most {_HELP_SECONDS} s", _help),
    Row("spine.cost", f"at most {_COST_TIMES:g} x time, {_COST_MEMORY:g} x memory", _cost, is_long=True),
    Row("spine.sites", "applied + refused = anchors, 9 of 9 models", _sites, is_long=True),
)
