"""A pipeline as a TOML file, which says the same as the text form and is read as strictly.

preset = "exact"                    # or: passes = ["fold-batch-norm", "fold-norm-affine"]
skip = ["simplify-shapes"]

[options.fold-constants]
max_growth = 4194304
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, final

from flowopt.errors import FlowoptError, UserError
from flowopt.formats.printable import printable
from flowopt.formats.toml_file import read_toml
from flowopt.nearest import nearest
from flowopt.pipeline.presets import PRESETS
from flowopt.pipeline.registry import entries, pass_class
from flowopt.pipeline.text import ordered, parse_pass

SUFFIX: Final = ".toml"

_KEYS: Final = ("preset", "passes", "skip", "options")
_EXAMPLE: Final = 'preset = "exact"'
# The text form separates with these, so a text that has them could not be repeated from a report.
_SEPARATORS: Final = ",:"
_KINDS: Final[Mapping[type, str]] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text in quotes",
    list: "a list",
    dict: "a table",
}


def parse_pipeline_file(path: Path, *, skip: Iterable[str] = ()) -> list[Any]:
    """Pass objects of a TOML file, without those that it or ``skip`` leaves out.

    ``preset`` (a name) or ``passes`` (a list of names), one of the two; ``skip``: a list of names;
    ``[options.NAME]``: options of the pass of that name, with values of the option's type.

    Args:
        path: at most 64 KiB.
        skip: names to leave out beside the file's.

    Raises:
        UserError: no such file, not TOML, or anything in it that is not as above; it names the file and the key.
    """
    file = _File(path, read_toml(path, "pipeline", _EXAMPLE, why="a name that ends in .toml is a file"))
    names = file.pass_names()
    left_out = file.names("skip")
    options = file.options(present=ordered(names), skipped=left_out)
    made = []
    for item in ordered(names, skip=[*left_out, *skip]):
        name = item.split(":")[0]
        made.append(_with_options(path, name, parse_pass(item), options.get(name, {})))
    return made


@final
@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    content: Mapping[str, Any]

    def pass_names(self) -> tuple[str, ...]:
        for key in self.content:
            if key not in _KEYS:
                self.refuse(key, "is no key of a pipeline file", nearest(key, _KEYS, otherwise="the keys are"))
        given = [key for key in ("preset", "passes") if key in self.content]
        if len(given) != 1:
            what = "gives both preset and passes" if given else "gives neither preset nor passes"
            raise UserError(
                f"{self.path} {what}", hint=f'keep one: {_EXAMPLE}, or passes = ["fold-batch-norm", "fold-norm-affine"]'
            )
        if given == ["passes"]:
            names = self.names("passes")
            if not names:
                self.refuse("passes", "names no pass", f"list some, or write {_EXAMPLE}")
            return names
        preset = self.content["preset"]
        if not isinstance(preset, str):
            self.refuse("preset", f"is {_shown(preset)}, not a name in quotes", f"such as {_EXAMPLE}")
        if preset not in PRESETS:
            hint = nearest(preset, PRESETS, otherwise="presets:")
            self.refuse("preset", f"there is no preset {_quoted(preset)}", hint)
        return PRESETS[preset]

    def names(self, key: str) -> tuple[str, ...]:
        """A list of names of passes; empty where the key is absent."""
        found = self.content.get(key, [])
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            self.refuse(key, f"is {_shown(found)}, not a list of names", f'such as {key} = ["fold-batch-norm"]')
        for name in found:
            self._require_pass(key, name)
        return tuple(found)

    def options(self, *, present: Iterable[str], skipped: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Checked values by pass and option."""
        tables = self.content.get("options", {})
        here = [item.split(":")[0] for item in present]
        if not isinstance(tables, dict):
            self.refuse("options", f"is {_shown(tables)}, not a table", "such as [options.fold-constants]")
        for name, values in tables.items():
            key = f"options.{name}"
            self._require_pass(key, name)
            if name not in here:
                self.refuse(key, f"is for a pass that is not in the pipeline: {', '.join(here)}", "leave the table out")
            if name in skipped:
                self.refuse(key, "is for a pass that skip leaves out", "keep one of the two")
            if not isinstance(values, dict):
                self.refuse(key, f"is {_shown(values)}, not a table of options", f"write [{key}] above option = value")
        return {name: self._values(name, values) for name, values in tables.items()}

    def refuse(self, key: str, problem: str, hint: str) -> NoReturn:
        raise UserError(f"{self.path}: {printable(key)}: {problem}", hint=hint)

    def _require_pass(self, key: str, name: str) -> None:
        if ":" in name:
            bare = printable(name.partition(":")[0])
            self.refuse(key, f"{_quoted(name)} is more than a name", f"write its options under [options.{bare}]")
        if name not in entries():
            hint = nearest(name, entries(), otherwise="flowopt passes lists them:")
            self.refuse(key, f"there is no pass {_quoted(name)}", hint)

    def _values(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        fields = {f.name: f.default for f in pass_class(name).text_fields()}
        return {option: self._value(f"options.{name}", option, value, fields) for option, value in values.items()}

    def _value(self, table: str, option: str, value: object, defaults: Mapping[str, Any]) -> Any:
        key = f"{table}.{option}"
        if option not in defaults:
            known = nearest(option, defaults, otherwise="its options:") if defaults else "leave it out: it has none"
            self.refuse(key, "the pass has no such option", known)
        default = defaults[option]
        # A whole number is also written for a float; true is no number, though Python's is.
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if type(value) is not type(default):
            wanted = _KINDS.get(type(default), type(default).__name__)
            self.refuse(key, f"is {_shown(value)}; it must be {wanted}", f"such as {option} = {_written(default)}")
        if isinstance(value, str) and (value != value.strip() or any(char in value for char in _SEPARATORS)):
            self.refuse(key, f"{_quoted(value)} has blanks around it, a comma or a colon", "choose another text")
        return value


def _with_options(path: Path, name: str, made: Any, options: Mapping[str, Any]) -> Any:
    try:
        return dataclasses.replace(made, **options) if options else made
    except FlowoptError as error:
        error.add_note(f"{path}: options.{name}")
        raise


def _shown(value: object) -> str:
    kind = _KINDS.get(type(value), f"a {type(value).__name__}")
    return f"{printable(repr(value))} ({kind})" if isinstance(value, (bool, int, float, str)) else kind


def _quoted(text: str) -> str:
    return printable(repr(text))


def _written(default: object) -> str:
    """A default as TOML writes it."""
    if isinstance(default, bool):
        return str(default).lower()
    return f'"{default}"' if isinstance(default, str) else str(default)
