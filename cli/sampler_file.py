"""``--config sampler.toml``: options of ``flowopt sampler`` in a file. Those of the command line win.

solver = "heun"                     # keys are the names of options; those that may be repeated take lists
steps = 20

[convention]                        # or: convention = "diffusers-flow"
name = "diffusers-flow"
time_scale = 1.0

[guidance]                          # or: guidance = "cfg:4"
scale = 4                           # or a list, one per evaluation, or "input"
unconditional = { label = 1000 }

[output]
clamp = [-1, 1]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, final

import typer

from flowopt.cli.config_file import file_option, option_default, refuse, value_text
from flowopt.formats.toml_file import read_toml
from flowopt.nearest import nearest

_EXAMPLE = 'solver = "heun"'
_COMMAND = "sampler"
_TABLES = {
    "guidance": ("scale", "from", "unconditional", "channels", "order"),
    "output": ("scale", "shift", "clamp"),
}
_KINDS = {"unconditional": "cfg", "conditional": "cfg-original"}


@final
@dataclass(frozen=True, slots=True)
class SamplerFile:
    """What a file says beside its options: what the command merges name by name instead of replacing.

    Attributes:
        fields: of the convention, as ``name=value``; they go with the file's convention.
        settings: as ``--set`` takes them.
        unconditional: as ``--unconditional`` takes them.
    """

    fields: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    unconditional: tuple[str, ...] = ()

    def unconditional_beside(self, given: Sequence[str]) -> tuple[str, ...]:
        """Those whose names the command line does not give."""
        names = [text.partition("=")[0] for text in given]
        return tuple(text for text in self.unconditional if text.partition("=")[0] not in names)


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Callback of ``--config``: the file's options become the defaults of the command's.

    Raises:
        UserError: no such file, not TOML, a key that is no option, or a value of another kind.
    """
    if path is None:
        return None
    reading = _Reading(path, context)
    for key, value in read_toml(path, _COMMAND, _EXAMPLE).items():
        reading.take(key, value)
    context.default_map = reading.defaults
    context.meta[SamplerFile.__name__] = SamplerFile(
        tuple(reading.fields), tuple(reading.settings), tuple(reading.unconditional)
    )
    return path


def file_of(context: typer.Context) -> SamplerFile:
    """What ``read_config`` found beside options."""
    found = context.meta.get(SamplerFile.__name__, SamplerFile())
    assert isinstance(found, SamplerFile), "only read_config stores it"
    return found


@final
@dataclass(slots=True)
class _Reading:
    path: Path
    context: typer.Context
    defaults: dict[str, Any] = field(default_factory=dict)
    fields: list[str] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)
    unconditional: list[str] = field(default_factory=list)

    def take(self, key: str, value: object) -> None:
        if isinstance(value, dict) and key in ("convention", "set", *_TABLES):
            getattr(self, f"_{key}_table")(value)
            return
        option = file_option(self.context, self.path, _COMMAND, key, _TABLES)
        default = option_default(option, self.path, _COMMAND, key, value)
        if key in ("set", "unconditional"):
            getattr(self, "settings" if key == "set" else "unconditional").extend(default)
        else:
            self.defaults[str(option.name)] = default

    def _convention_table(self, table: Mapping[str, object]) -> None:
        name = table.get("name")
        if not isinstance(name, str):
            self._refuse("convention", "has no name", 'write name = "diffusers-flow" in it')
        self.defaults["convention"] = name
        self.fields += self._pairs("convention", {key: value for key, value in table.items() if key != "name"})

    def _set_table(self, table: Mapping[str, object]) -> None:
        self.settings += self._pairs("set", table)

    def _guidance_table(self, table: Mapping[str, object]) -> None:
        self._require_known("guidance", table)
        kind = table.get("from", "unconditional")
        if kind not in _KINDS:
            self._refuse("guidance.from", "is no guidance", 'write from = "unconditional" or from = "conditional"')
        if "scale" not in table:
            self._refuse("guidance", "has no scale", 'write scale = 4, a list, or scale = "input"')
        self.defaults["guidance"] = f"{_KINDS[str(kind)]}:{self._text('guidance.scale', table['scale'])}"
        without = table.get("unconditional", {})
        if not isinstance(without, dict):
            self._refuse("guidance.unconditional", "is not a table", "such as unconditional = { label = 1000 }")
        self.unconditional += self._pairs("guidance.unconditional", without)
        for key in ("channels", "order"):
            if key in table:
                self.defaults[f"guidance_{key}"] = self._text(f"guidance.{key}", table[key])

    def _output_table(self, table: Mapping[str, object]) -> None:
        self._require_known("output", table)
        for key in ("scale", "shift"):
            if key in table:
                self.defaults[f"output_{key}"] = self._text(f"output.{key}", table[key])
        clamp = table.get("clamp")
        if isinstance(clamp, list) and len(clamp) == 2:
            self.defaults["clamp"] = "..".join(self._text("output.clamp", end) for end in clamp)
        elif clamp is not None:
            self._refuse("output.clamp", "is not a list of two numbers", "such as clamp = [-1, 1]")

    def _require_known(self, name: str, table: Mapping[str, object]) -> None:
        for key in table:
            if key not in _TABLES[name]:
                self._refuse(f"{name}.{key}", "is no key", nearest(key, _TABLES[name], otherwise="its keys:"))

    def _pairs(self, name: str, table: Mapping[str, object]) -> list[str]:
        return [f"{key}={self._text(f'{name}.{key}', value)}" for key, value in table.items()]

    def _text(self, key: str, value: object) -> str:
        return value_text(self.path, key, value)

    def _refuse(self, key: str, problem: str, hint: str) -> NoReturn:
        refuse(self.path, key, problem, hint)
