"""What is said about an error, in one screen, and with which exit code the command ends.

flowopt: what went wrong (exit N)
  where   the file, line or site
  why     the reason
  try     what to do about it
"""

import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import typer

from flowopt.errors import FlowoptError
from flowopt.formats.printable import printable_lines

EXIT_USAGE = 2
EXIT_INTERNAL = 70
EXIT_IO = 74
EXIT_INTERRUPTED = 130

# The base of typer's own complaints. It comes from click, or from typer's copy of it, which exports it nowhere.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def exit_code_of(error: BaseException) -> int:
    """The exit code that the command line promises for an error."""
    if isinstance(error, FlowoptError):
        return error.exit_code
    if isinstance(error, _UsageError):
        return EXIT_USAGE
    return EXIT_IO if isinstance(error, OSError) else EXIT_INTERNAL


def described(error: BaseException, arguments: Sequence[str] = ()) -> str:
    """An error as text: what, where, why, what to try.

    Args:
        error: what ended the command.
        arguments: the words of the command, out of which the one to try next is made.
    """
    code = exit_code_of(error)
    if isinstance(error, FlowoptError):
        where = "\n".join(getattr(error, "__notes__", ()))
        hint = error.hint or (_REPORT_IT if code == EXIT_INTERNAL else "")
        if error.retry and arguments:
            hint = "\n".join([_command(arguments, error.retry), *([hint] if hint else [])])
        return _screen(error.message, code, where, error.why, hint)
    if isinstance(error, _UsageError):
        return _usage(error)
    what = str(error).strip() or "no message"
    where = "\n".join([*getattr(error, "__notes__", ()), _last_frame(error)])
    if isinstance(error, OSError):
        return _screen(what, code, where, "the operating system refused", "make room or check the file, and run again")
    return _screen(
        f"{type(error).__name__}: {what}",
        code,
        where,
        "unexpected: a defect of flowopt, or of the model's own code",
        _REPORT_IT,
    )


def _command(arguments: Sequence[str], retry: Sequence[tuple[str, str]]) -> str:
    """The same command with other options; one that can be given once is replaced."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    words, rest = list(arguments[:end]), arguments[end:]
    for option, value in retry:
        if option in _GIVEN_ONCE:
            words = _without(words, option)
        words += [option, value] if value else [option]
    return shlex.join(["flowopt", *words, *rest])


def _without(words: Sequence[str], option: str) -> list[str]:
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == option:
            next(rest, None)
        elif not word.startswith(f"{option}="):
            kept.append(word)
    return kept


_GIVEN_ONCE = ("--trust", "--factory")
_REPORT_IT = "the same command with --debug, which shows the traceback; report it if it points into flowopt"


def _screen(what: str, code: int, where: str, why: str, hint: str) -> str:
    first, *more = what.splitlines() or [""]
    lines = [f"flowopt: {first} (exit {code})", *(f"  {line}" for line in more)]
    for label, text in (("where", where), ("why", why), ("try", hint)):
        if text:
            lines.append(f"  {label:<5} " + text.replace("\n", "\n        "))
    # Names of files, and what files hold, may have control characters and any length.
    return printable_lines("\n".join(lines))


def _usage(error: BaseException) -> str:
    # Both attributes exist on every usage error of click, under whatever name it is installed.
    what = str(error.format_message()) if hasattr(error, "format_message") else str(error)
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "flowopt"
    return _screen(
        what[:1].lower() + what[1:].rstrip(".").replace("Value error, ", ""), EXIT_USAGE, "", "", f"{path} --help"
    )


def _last_frame(error: BaseException) -> str:
    """The innermost place, without the folders that only say where this machine keeps its packages."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    last = frames[-1]
    path = Path(last.filename)
    for root in sorted((Path(entry).absolute() for entry in (".", *sys.path)), key=lambda p: -len(p.parts)):
        if path.is_relative_to(root):
            path = path.relative_to(root)
            break
    return f"{path.as_posix()}:{last.lineno} in {last.name}"
