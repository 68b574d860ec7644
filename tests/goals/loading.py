"""Rows of loading: what people have becomes a model, and nothing that a file hides is run."""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from flowopt.cli.main import main
from tests.goals import roads
from tests.goals.archives import check_round_trip, measured_memory
from tests.goals.broken import surveyed
from tests.goals.row import Measured, Row, counted, problem_of
from tests.hostile.onnx_files import ONNX_FILES, WIDTH, canary
from tests.hostile.pt2_archive import marker
from tests.hostile.pt2_files import PT2_FILES
from tests.runtime.test_hostile_onnx import age, was_read
from tests.zoo.models import ZOO

_REFUSED = (65, 77)
_BROKEN, _BROKEN_SECONDS, _SLOWEST_SECONDS = 500, 60.0, 10.0
_GIBIBYTES, _ADDED_BYTES = 2.0, 200_000_000


def _hostile() -> Measured:
    problems = {name: problem_of(partial(_check_archive, make)) for name, make in PT2_FILES.items()}
    problems |= {f"onnx {name}": problem_of(partial(_check_artifact, make)) for name, make in ONNX_FILES.items()}
    good, short = counted(problems)
    return Measured(f"{good} of {len(problems)} refused, nothing run or read", good == len(problems) >= 60, short)


def _check_archive(make: Callable[[Path], Path]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = make(Path(folder))
        _check_refused("explain", str(path))
        assert not marker(Path(folder)).exists(), "it ran"


def _check_artifact(make: Callable[[Path], Path]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        candidate = make(Path(folder))
        age(canary(Path(folder)))
        _check_refused("verify", "tests.goals.loading:reference", str(candidate))
        assert not was_read(canary(Path(folder))), "it read a file outside its folder"


def reference() -> tuple[nn.Module, tuple[Tensor]]:
    """What the hostile artifacts claim to be made of."""
    return nn.Linear(WIDTH, WIDTH, bias=False).eval(), (torch.ones(2, WIDTH),)


def _check_refused(*arguments: str) -> None:
    said = io.StringIO()
    started = time.perf_counter()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(arguments)
    seconds = time.perf_counter() - started
    text = said.getvalue()
    assert code in _REFUSED, f"exit {code}: {text.splitlines()[:1]}"
    assert "Traceback" not in text and "\n  try " in text, f"what it says: {text[:200]}"
    assert all(c.isprintable() or c == "\n" for c in text), "control characters reach the terminal"
    assert seconds < _SLOWEST_SECONDS, f"{seconds:.0f} s"


def _broken() -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        survey = surveyed(Path(folder), _BROKEN, seed=1)
    handled = _BROKEN - len(survey.problems)
    value = f"{handled} of {_BROKEN} in {survey.seconds:.0f} s, slowest {survey.slowest:.1f} s"
    is_fast = survey.seconds < _BROKEN_SECONDS and survey.slowest < _SLOWEST_SECONDS
    return Measured(value, handled == _BROKEN and is_fast, tuple(survey.problems))


def _roundtrip() -> Measured:
    good, short = counted({name: problem_of(partial(check_round_trip, name)) for name in ZOO})
    return Measured(f"{good} of {len(ZOO)} bit for bit", good == len(ZOO), short)


def _memory() -> Measured:
    added, size = measured_memory(_GIBIBYTES)
    return Measured(f"{added / 1e9:.3f} GB for an archive of {size / 1e9:.2f} GB", added <= _ADDED_BYTES)


ROWS = (
    Row("load.hostile", "at least 60, all refused with 65 or 77", _hostile, is_long=True),
    Row("load.broken", f"{_BROKEN} of {_BROKEN}, under {_BROKEN_SECONDS:g} s, none over 10 s", _broken, is_long=True),
    *roads.ROWS,
    Row("load.roundtrip", "9 of 9 bit for bit, without transformers", _roundtrip, is_long=True),
    Row("load.memory", "at most 0.2 GB beyond mapped pages", _memory, is_long=True),
)
