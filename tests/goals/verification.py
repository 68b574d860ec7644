"""Rows of verification: what it costs, in time and in memory."""

from tests.benchmarks.oracle_memory import measured_peak
from tests.benchmarks.verification_cost import MODELS, measured_cost
from tests.goals.row import Measured, Row

_FORWARDS = {"quick": 8.0, "full": 20.0}
_MINILM_SECONDS = 15.0
_GIBIBYTES = 2.0
_TIMES, _MORE_BYTES = 1.3, 0.5e9


def _cost() -> Measured:
    costs = {(model, level): measured_cost(model, level) for model in MODELS for level in _FORWARDS}
    worst = {level: max(c.forwards for (_, at), c in costs.items() if at == level) for level in _FORWARDS}
    seconds = costs["minilm", "quick"].seconds
    value = f"quick {worst['quick']:.1f}, full {worst['full']:.1f} forwards; MiniLM quick {seconds:.1f} s"
    details = tuple(
        f"{model} {level}: {cost.forwards:.1f} float64 forwards per case, {cost.cases} cases, {cost.seconds:.1f} s"
        for (model, level), cost in costs.items()
    )
    return Measured(
        value, all(worst[at] <= most for at, most in _FORWARDS.items()) and seconds < _MINILM_SECONDS, details
    )


def _memory() -> Measured:
    oracle, evidence = (measured_peak(mode, _GIBIBYTES) for mode in ("oracle", "evidence"))
    allowed = _TIMES * oracle.model_bytes + _MORE_BYTES
    value = f"{oracle.peak_bytes / 1e9:.2f} GB for a model of {oracle.model_bytes / 1e9:.2f} GB"
    details = (f"all evidence of one case, with the one-ulp ensemble: {evidence.peak_bytes / 1e9:.2f} GB",)
    return Measured(value, oracle.peak_bytes <= allowed, details)


ROWS = (
    Row("verify.cost", "quick at most 8, full at most 20; under 15 s", _cost, is_long=True),
    Row("verify.memory", "at most 1.3 x the model + 0.5 GB", _memory, is_long=True),
)
