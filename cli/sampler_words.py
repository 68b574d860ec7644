"""What the library says about its arguments, in options of the command line."""

import contextlib
import re
from collections.abc import Iterator
from typing import Literal

from flowopt.errors import FlowoptError, UserError

Stage = Literal["sampler", "network"]

_OPTIONS: dict[Stage, str] = {
    "sampler": "steps|schedule|solver|convention",
    "network": "sample|prediction|form",
}
_VALUE = r"'?(?P<value>[^\s'()]*[^\s',;()])'?"
_TIMES = re.compile(r"(?<![\w.-])times=\('(?P<value>\w+)',\)")
_CONFIGURED = re.compile(r"\w+\.from_config\(scheduler\.config, (?P<values>[^()]*)\)")
_PROBED = ("mu", "eta", "sigmas", "timesteps")


@contextlib.contextmanager
def in_options(stage: Stage) -> Iterator[None]:
    """Errors raised inside name options: ``--steps 20`` for steps=20, ``--set time_scale=1`` for a field.

    Args:
        stage: whose arguments are meant: a convention and a network both have a ``prediction``.
    """
    try:
        yield
    except UserError as error:
        _spell(error, stage)
        raise


def _spell(error: FlowoptError, stage: Stage) -> None:
    option = re.compile(rf"(?<![\w.-])(?P<name>{_OPTIONS[stage]})={_VALUE}")

    def spelled(text: str) -> str:
        text = _TIMES.sub(r"--time \g<value>", text)
        return option.sub(r"--\g<name> \g<value>", text)

    error.message, error.why, error.hint = spelled(error.message), spelled(error.why), spelled(error.hint)
    if stage == "sampler":
        error.hint = _settings().sub(r"--set \g<0>", _CONFIGURED.sub(_as_settings, error.hint))
    error.args = (error.message,)


def _as_settings(found: re.Match[str]) -> str:
    return " ".join(pair.strip().lower() for pair in found["values"].split(","))


def _settings() -> re.Pattern[str]:
    """Fields of a convention, options of a probed scheduler, and what says ``true`` or ``false``."""
    import dataclasses

    from flowopt.sampling.convention import Convention

    names = [*(field.name for field in dataclasses.fields(Convention)), *_PROBED]
    return re.compile(rf"(?<![\w.-])(?:(?:{'|'.join(names)})=|\w+=(?:true|false)\b)")
