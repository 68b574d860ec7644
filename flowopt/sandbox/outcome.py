"""What the end of a checking process means: the function's result, or an error in plain words."""

import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowopt import errors
from flowopt.errors import FlowoptError, InternalError, MalformedModel
from flowopt.formats.limits import GIBIBYTE, MEBIBYTE
from flowopt.sandbox.process import ANSWER_BYTES, Ended
from flowopt.sandbox.shortage import speaks_of_shortage

_ASK_FOR_ANOTHER = "download or export the model again; --debug shows the traceback"
_FAULT_REPORT = "Fatal Python error:"


class InChild(Exception):
    """Cause of an error that comes from a checking process; its text is the traceback there, for ``--debug``."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the process was asked to run, and within which limits; ``memory`` 0: none was known."""

    function: str
    memory: int
    seconds: int


def outcome(ended: Ended, asked: Asked) -> Any:
    """The result of the function.

    Raises:
        FlowoptError: what the function raised, as the same class with the same fields.
        MalformedModel: it needed more memory or time than the limits, crashed, or raised anything else.
        InternalError: it cannot be imported, or its result is no JSON value.
    """
    if ended.answer.endswith(b"\n"):
        try:
            # What is printed while Python starts comes before the answer.
            answer = json.loads(ended.answer.splitlines()[-1])
            if "result" in answer:
                return answer["result"]
            error, trace = _error(answer, asked), str(answer["traceback"])
        except (ValueError, TypeError, KeyError, RecursionError):
            error, trace = _invalid(ended), ended.stderr
    else:
        error, trace = _without_answer(ended, asked), ended.stderr
    raise error from InChild(f"in the checking process:\n{trace}")


def _error(failure: Mapping[str, Any], asked: Asked) -> FlowoptError:
    kind = failure["failure"]
    if kind == "memory":
        return _too_little_memory(asked)
    error_class: type[FlowoptError] = InternalError if kind == "import" else MalformedModel
    fields: dict[str, Any] = {}
    message = str(failure["message"])
    if kind == "flowopt":
        found = getattr(errors, str(failure["type"]), None)
        if isinstance(found, type) and issubclass(found, FlowoptError):
            error_class = found
        retry = tuple((str(option), str(value)) for option, value in failure["retry"])
        fields = {"why": str(failure["why"]), "hint": str(failure["hint"]), "retry": retry}
    else:
        message = ": ".join([str(failure["type"]), *message.splitlines()[:1]])
    if kind == "import":
        message = f"the checking process cannot import {asked.function}: {message}"
    if kind == "raised":
        fields = {"why": "reading the model raised it, in a process of its own", "hint": _ASK_FOR_ANOTHER}
    error = error_class(message, **fields)
    for note in failure["notes"]:
        error.add_note(str(note))
    return error


def _invalid(ended: Ended) -> FlowoptError:
    return MalformedModel(
        "the checking process gave an answer that makes no sense",
        why=_last_words(ended.stderr) or "the model made it write something else",
        hint=_ASK_FOR_ANOTHER,
    )


def _without_answer(ended: Ended, asked: Asked) -> FlowoptError:
    if len(ended.answer) > ANSWER_BYTES:
        return MalformedModel(
            f"what was found in the model takes more than {ANSWER_BYTES // MEBIBYTE} MiB to say",
            why="no model of a sensible size needs that much",
            hint=_ASK_FOR_ANOTHER,
        )
    if ended.status is None:
        return _too_slow(asked)
    if speaks_of_shortage(ended.stderr):
        return _too_little_memory(asked)
    why = _last_words(ended.stderr)
    if ended.status >= 0:
        return MalformedModel(
            f"the checking process ended without an answer (exit status {ended.status})", why=why, hint=_ASK_FOR_ANOTHER
        )
    name = _signal_name(-ended.status)
    if name == "SIGXCPU":
        return _too_slow(asked)
    if name == "SIGKILL":
        return MalformedModel(
            "the checking process was killed (SIGKILL)",
            why="not by flowopt: by someone, or by the system because memory ran out",
            hint="free memory and run again, or check the model on a machine with more memory",
        )
    return MalformedModel(
        f"reading the model crashed the checking process ({name})",
        why=why or "a library that reads it has a defect, and the model triggers it",
        hint=_ASK_FOR_ANOTHER,
    )


def _too_little_memory(asked: Asked) -> MalformedModel:
    if not asked.memory:
        return MalformedModel("checking the model needed more memory than there is", hint=_ASK_FOR_ANOTHER)
    return MalformedModel(
        f"checking the model needed more than {asked.memory / GIBIBYTE:.3g} GiB of memory",
        why="a damaged or hostile file can ask for any amount, so there is a limit",
        hint="if you expect it to need that much",
        retry=(("--limit", f"memory={2 * asked.memory}"),),
    )


def _too_slow(asked: Asked) -> MalformedModel:
    return MalformedModel(
        f"checking the model took more than {asked.seconds} seconds",
        why="a damaged or hostile file can keep a reader busy for ever, so there is a limit",
        hint="if you expect it to take that long",
        retry=(("--limit", f"seconds={2 * asked.seconds}"),),
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_words(stderr: str) -> str:
    """The last line that a library wrote; the fault handler's report after it is for ``--debug``."""
    lines = stderr.partition(_FAULT_REPORT)[0].strip().splitlines()
    return lines[-1].strip() if lines else ""
