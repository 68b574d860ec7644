"""Every error that flowopt raises on purpose, with the exit code of the command line.

    FlowoptError                 70   an internal error unless a subclass says otherwise
    ├── UserError                 2   the call or the command is wrong; the message says what to write
    │   └── CaptureError          2   the model cannot be captured as asked
    ├── Different                 1   the numbers differ (raised only by ``flowopt.testing`` and ``strict``)
    ├── Diverged                  1   a recovery moved away from the original instead of towards it
    ├── Inconclusive              3   nothing could be decided
    ├── RequirementNotMet         4   fewer rewrites than ``--require`` asks for, or worse than ``--baseline``
    ├── MalformedModel           65   the file is not what it claims to be
    ├── ModelNotFound            66   no such file, module or factory
    ├── MissingDependency        69   an optional package is absent
    ├── InternalError            70   one of flowopt's own invariants does not hold
    ├── BackendFailed            70   a compiler that flowopt drives failed or crashed
    ├── CannotWrite              73   the output folder cannot be written
    └── Untrusted                77   refused by the trust policy

A message is one screen: what, where, why, what to try.
"""

from typing import ClassVar, final

_INDENT = "\n        "


class FlowoptError(Exception):
    """Base of every error that flowopt raises on purpose.

    Args:
        message: what went wrong, with the names and values.
        why: the reason, when it is not obvious from the message.
        hint: what to try; a full command where there is one.
        retry: options with which the same command can go on, such as ``(("--trust", "code"),)``. The command line
            prints the whole command; Python callers read the hint.
    """

    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, *, why: str = "", hint: str = "", retry: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.why = why
        self.hint = hint
        self.retry = retry

    def __str__(self) -> str:
        lines = [self.message]
        if self.why:
            lines.append("  why   " + self.why.replace("\n", _INDENT))
        attempts = [f"again with {_keywords(self.retry)}"] if self.retry else []
        attempts += [self.hint] if self.hint else []
        if attempts:
            lines.append("  try   " + "\n".join(attempts).replace("\n", _INDENT))
        return "\n".join(lines)


def _keywords(retry: tuple[tuple[str, str], ...]) -> str:
    """Options of the command line as keywords of the Python call."""
    shapes = [
        f"{name!r}: {shape!r}"
        for option, text in retry
        if option == "--shape"
        for name, _, shape in [text.partition("=")]
    ]
    words = [f"{option[2:]}={text!r}" for option, text in retry if option in ("--trust", "--factory")]
    words += [f"shapes={{{', '.join(shapes)}}}"] if shapes else []
    limits = [text for option, text in retry if option == "--limit"]
    words += [f"limits=Limits({', '.join(limits)})"] if limits else []
    words += ["eval_mode=True" for option, _ in retry if option == "--eval"]
    return ", ".join(words)


class UserError(FlowoptError):
    """The call or the command is wrong."""

    exit_code = 2


@final
class CaptureError(UserError):
    """The model cannot be captured as asked."""


@final
class Different(FlowoptError):
    """Two programs that should agree do not."""

    exit_code = 1


@final
class Diverged(FlowoptError):
    """A recovery moved away from the original instead of towards it."""

    exit_code = 1


@final
class Inconclusive(FlowoptError):
    """Nothing could be decided."""

    exit_code = 3


@final
class RequirementNotMet(FlowoptError):
    """Fewer rewrites than ``--require name:count`` asks for, or something worse than in the ``--baseline``."""

    exit_code = 4


@final
class MalformedModel(FlowoptError):
    """The file is not what it claims to be."""

    exit_code = 65


@final
class ModelNotFound(FlowoptError):
    """There is no such file, module or factory."""

    exit_code = 66


@final
class MissingDependency(FlowoptError):
    """An optional package is absent; the hint is the line to run."""

    exit_code = 69


@final
class InternalError(FlowoptError):
    """One of flowopt's own invariants does not hold: a defect of a pass or of flowopt."""

    exit_code = 70


@final
class BackendFailed(FlowoptError):
    """A compiler that flowopt drives failed or crashed."""

    exit_code = 70


@final
class CannotWrite(FlowoptError):
    """The output folder cannot be written."""

    exit_code = 73


@final
class Untrusted(FlowoptError):
    """Refused by the trust policy."""

    exit_code = 77
