"""``--config FILE.toml``: options of a command in a file, by their names. Those of the command line win."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import typer

from flowopt.errors import UserError
from flowopt.formats.printable import printable
from flowopt.formats.toml_file import read_toml
from flowopt.nearest import nearest

_NOT_IN_A_FILE = ("config", "debug", "help")


def config_callback(command: str, example: str) -> Callable[[typer.Context, Path | None], Path | None]:
    """The callback of a command's ``--config``: what the file says becomes the defaults of the options.

    Args:
        command: its name.
        example: a line of such a file, for messages.
    """

    def read(context: typer.Context, path: Path | None) -> Path | None:
        if path is None:
            return None
        defaults: dict[str, Any] = {}
        for key, value in read_toml(path, command, example).items():
            option = file_option(context, path, command, key)
            defaults[str(option.name)] = option_default(option, path, command, key, value)
        context.default_map = defaults
        return path

    return read


def file_option(context: typer.Context, path: Path, command: str, key: str, others: Iterable[str] = ()) -> Any:
    """The option that a key of a file names.

    Args:
        context: of the command.
        path: the file.
        command: its name, for messages.
        key: of the file.
        others: keys beside options, for messages.

    Raises:
        UserError: no such option.
    """
    known = {
        name.removeprefix("--"): option
        for option in context.command.params
        for name in option.opts
        if name.startswith("--") and name.removeprefix("--") not in _NOT_IN_A_FILE
    }
    if key not in known:
        names = dict.fromkeys([*known, *others])
        refuse(path, key, f"is no option of flowopt {command}", nearest(key, names, otherwise="such as"))
    return known[key]


def option_default(option: Any, path: Path, command: str, key: str, value: object) -> Any:
    """A value of a file as the command line has it.

    Raises:
        UserError: a value of another kind than the option's.
    """
    if getattr(option, "multiple", False):
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            refuse(path, key, "is not a list of texts", f'such as {key} = ["..."]')
        return texts
    is_flag = getattr(option, "is_flag", False)
    if is_flag != isinstance(value, bool):
        wanted = "true or false" if is_flag else "a text or a number"
        refuse(path, key, f"must be {wanted}", f"flowopt {command} --help explains --{key}")
    return value if isinstance(value, bool) else value_text(path, key, value)


def value_text(path: Path, key: str, value: object) -> str:
    """A text, a number or a list of them, which commas join, as the command line has it.

    Raises:
        UserError: something else.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, list) and value and all(type(one) in (str, int, float) for one in value):
        return ",".join(map(str, value))
    refuse(path, key, "must be a text, a number or a list of them", "such as steps = 20")


def refuse(path: Path, key: str, problem: str, hint: str) -> NoReturn:
    """Say what is wrong with a key of a file."""
    raise UserError(f"{path}: {printable(key)} {problem}", hint=hint)
