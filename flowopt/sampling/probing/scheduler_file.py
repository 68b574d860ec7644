"""A scheduler of diffusers out of the file that the library saves it in."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from flowopt.errors import MalformedModel, MissingDependency, ModelNotFound, UserError
from flowopt.formats.printable import printable
from flowopt.nearest import nearest

_NAME: Final = "scheduler_config.json"
# A pipeline's folder has its scheduler in a folder of its own.
_PLACES: Final = (_NAME, f"scheduler/{_NAME}")
_MOST_BYTES: Final = 1 << 20
# Schedulers make tables of this length.
_MOST_TRAIN_STEPS: Final = 1 << 20


def read_scheduler(path: str | Path, changes: Mapping[str, object] | None = None) -> tuple[object, dict[str, object]]:
    """The scheduler that a file describes. The file is data: it names a class of diffusers and its settings.

    Args:
        path: ``scheduler_config.json``, or the folder of a scheduler or a pipeline that holds it.
        changes: settings that replace the file's.

    Returns:
        The scheduler, and those of the changes that are no settings of its class, such as ``eta``.

    Raises:
        ModelNotFound: no such file.
        MalformedModel: it does not describe a scheduler.
        UserError: settings that the class refuses, or a class that diffusers does not have.
        MissingDependency: diffusers, or what it needs for this class.
    """
    file = _file(Path(path))
    config = _config(file)
    made = _class(file, config)
    known = inspect.signature(made.__init__).parameters
    given = dict(changes or {})
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    settings |= {key: value for key, value in given.items() if key in known}
    total = settings.get("num_train_timesteps", 1)
    if not isinstance(total, int) or not 1 <= total <= _MOST_TRAIN_STEPS:
        raise MalformedModel(f"{file}: num_train_timesteps is {printable(repr(total))}")
    try:
        scheduler = made.from_config(settings)
    # The library and its optional packages raise what they like about a setting.
    except Exception as error:
        reason = printable(str(error) or type(error).__name__, 300)
        raise UserError(f"{made.__name__} refuses the settings in {file}: {reason}") from error
    return scheduler, {key: value for key, value in given.items() if key not in known}


def _file(path: Path) -> Path:
    found = [path] if path.is_file() else [path / place for place in _PLACES if (path / place).is_file()]
    if not found:
        what = f"holds no {_NAME}" if path.is_dir() else "does not exist"
        raise ModelNotFound(
            f"{path} {what}",
            why="a scheduler is read from this machine, never from a hub",
            hint="scheduler.save_pretrained('scheduler') writes it",
        )
    return found[0]


def _config(file: Path) -> Mapping[str, Any]:
    with file.open("rb") as opened:
        raw = opened.read(_MOST_BYTES + 1)
    try:
        content = json.loads(raw.decode("utf-8")) if len(raw) <= _MOST_BYTES else None
    # The parser recurses: RecursionError where it is nested deeper than the stack.
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("_class_name"), str):
        raise MalformedModel(
            f"{file} is no configuration of a scheduler",
            why='it is not a JSON object with a "_class_name"',
            hint=f"give the {_NAME} that diffusers saved",
        )
    return content


def _class(file: Path, config: Mapping[str, Any]) -> Any:
    try:
        import diffusers
        from diffusers.schedulers.scheduling_utils import SchedulerMixin
    except ImportError as error:
        raise MissingDependency(
            "reading a scheduler of diffusers needs diffusers",
            why=printable(str(error), 300),
            hint="pip install diffusers; or name a solver: --solver, --schedule, --convention",
        ) from error
    name = config["_class_name"]
    found = getattr(diffusers, name, None) if name.isidentifier() else None
    needed = getattr(found, "_backends", None)
    if needed:
        raise MissingDependency(f"{name} needs {', '.join(needed)}", hint=f"pip install {' '.join(needed)}")
    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        names = sorted(key for key in dir(diffusers.schedulers) if key.endswith("Scheduler"))
        raise UserError(
            f"{file}: diffusers has no scheduler {printable(repr(name))}",
            hint=nearest(name, names, otherwise="its schedulers:"),
        )
    return found
