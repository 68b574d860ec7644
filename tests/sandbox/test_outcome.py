"""An answer is not trusted: a checking process may have been taken over by what it read."""

import json
import signal
from typing import Any

import pytest

from flowopt import errors
from flowopt.errors import MalformedModel
from flowopt.sandbox.outcome import Asked, outcome
from flowopt.sandbox.process import Ended

ASKED = Asked("package.module:function", memory=1 << 30, seconds=5)
REFUSAL = {
    "failure": "flowopt",
    "type": "UserError",
    "message": "m",
    "why": "w",
    "hint": "h",
    "retry": [],
    "notes": [],
    "traceback": "t",
}


def answered(answer: bytes, stderr: str = "", status: int = 0) -> Any:
    return outcome(Ended(status, answer, stderr), ASKED)


@pytest.mark.parametrize(
    "answer",
    [
        b"\n",
        b"x\n",
        b"{}\n",
        b"[]\n",
        b"1\n",
        b'"result"\n',
        b"\xff\n",
        b'{"failure": "raised"}\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_an_answer_that_is_none_is_refused(answer: bytes) -> None:
    with pytest.raises(MalformedModel, match="gave an answer that makes no sense"):
        answered(answer)


@pytest.mark.parametrize("field", [name for name in REFUSAL if name != "failure"])
def test_a_refusal_that_lacks_a_field_is_refused(field: str) -> None:
    assert answered(b'{"result": 1}\n') == 1
    with pytest.raises(MalformedModel, match="makes no sense"):
        answered(json.dumps({name: value for name, value in REFUSAL.items() if name != field}).encode() + b"\n")


@pytest.mark.parametrize("name", ["ClassVar", "final", "__name__", "absent", "Planted"])
def test_only_the_classes_of_flowopt_are_raised(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "Planted", ValueError, raising=False)
    with pytest.raises(MalformedModel, match=r"^m\n"):
        answered(json.dumps(REFUSAL | {"type": name}).encode() + b"\n")


def test_half_an_answer_is_none() -> None:
    with pytest.raises(MalformedModel, match="ended without an answer"):
        answered(b'{"result": 1}')


def test_what_was_printed_before_the_answer_is_left_out() -> None:
    assert answered(b'a greeting\n{"result": 1}\n') == 1


def test_a_process_that_is_killed_by_the_library_for_lack_of_memory_lacked_memory() -> None:
    words = "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n"
    with pytest.raises(MalformedModel, match="more than 1 GiB of memory"):
        answered(b"", words, -signal.SIGABRT)


def test_a_signal_without_a_name_is_told_by_its_number() -> None:
    with pytest.raises(MalformedModel, match=r"crashed the checking process \(signal 40\)"):
        answered(b"", "", -40)
