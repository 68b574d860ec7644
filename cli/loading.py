"""MODEL becomes a Program, after everything that can be refused without loading it."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flowopt.cli.options import Trust
from flowopt.cli.parsing import parse_dynamic, parse_limits, parse_shapes
from flowopt.errors import UserError
from flowopt.formats.detect import detect
from flowopt.formats.kinds import Kind

if TYPE_CHECKING:
    from flowopt.program.program import Program


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The options of a command that say how its MODEL is loaded, as they were typed."""

    trust: Trust = "data"
    eval_mode: bool = False
    dynamic: tuple[str, ...] = ()
    factory: str | None = None
    shape: tuple[str, ...] = ()
    inputs: Path | None = None
    limit: tuple[str, ...] = ()

    @property
    def sizes(self) -> tuple[str, ...]:
        """Those that say what goes in and which sizes are free, as words of a command line."""
        words = [word for text in self.dynamic for word in ("--dynamic", text)]
        words += [word for text in self.shape for word in ("--shape", text)]
        words += ["--inputs", str(self.inputs)] if self.inputs is not None else []
        return tuple(words)

    @property
    def capture_words(self) -> tuple[str, ...]:
        """Those that apply only to what is captured here, as words of a command line."""
        eval_mode = ("--eval",) if self.eval_mode else ()
        factory = ("--factory", self.factory) if self.factory is not None else ()
        return (*eval_mode, *factory, *self.sizes)

    @property
    def words(self) -> tuple[str, ...]:
        """All that differ from their defaults, as words of a command line."""
        words = ["--trust", self.trust] if self.trust != "data" else []
        words += [word for text in self.limit for word in ("--limit", text)]
        return (*self.capture_words, *words)

    def for_one_of_two(self, model: str) -> "LoadOptions":
        """Without those that cannot apply to ``model``, where two models share the options."""
        path = Path(model)
        if is_archive(path):
            return LoadOptions(trust=self.trust, limit=self.limit)
        return self if is_weights(path) else dataclasses.replace(self, factory=None)


def load_options(
    trust: Trust,
    eval_mode: bool,
    dynamic: Sequence[str] | None,
    factory: str | None,
    shape: Sequence[str] | None,
    inputs: Path | None,
    limit: Sequence[str] | None,
) -> LoadOptions:
    """The options of a command, checked as far as they can be without the model.

    Raises:
        UserError: a text of another form.
    """
    options = LoadOptions(
        trust, eval_mode, tuple(dynamic or ()), factory, tuple(shape or ()), inputs, tuple(limit or ())
    )
    if factory is not None and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", factory):
        raise UserError(
            f"--factory {factory!r} is not package.module:function", hint="such as --factory my_model:build"
        )
    parse_dynamic(options.dynamic), parse_shapes(options.shape), parse_limits(options.limit)
    return options


def load_model(model: str, options: LoadOptions) -> "Program":
    """Load a file or call a factory.

    Raises:
        UserError: capture options for an archive, whose graph and dimensions are fixed.
        FlowoptError: as ``flowopt.load``.
    """
    limits = parse_limits(options.limit)
    path = Path(model)
    if options.sizes and is_archive(path):
        raise UserError(
            f"{options.sizes[0]} does not apply to {path.name}: an archive is captured already, "
            "and its dimensions are fixed",
            why=_dimensions(path),
            hint="export it again with other dynamic_shapes, or give the model in a factory: package.module:factory",
        )
    from flowopt.program.loading.load import load

    return load(
        model,
        trust=options.trust,
        factory=options.factory,
        shapes=parse_shapes(options.shape),
        inputs=options.inputs,
        eval_mode=options.eval_mode,
        limits=limits,
        **parse_dynamic(options.dynamic).capture_options(),
    )


def is_archive(path: Path) -> bool:
    """True for a ``torch.export`` archive, whatever its suffix."""
    return path.is_file() and detect(path).kind is Kind.EXPORT_ARCHIVE


def is_weights(path: Path) -> bool:
    """True for a file of weights alone, whatever its suffix."""
    return path.is_file() and detect(path).kind in (Kind.STATE_DICT, Kind.SAFETENSORS)


def _dimensions(path: Path) -> str:
    from flowopt.errors import FlowoptError
    from flowopt.formats.pt2.dimensions import archive_dimensions

    try:
        return archive_dimensions(path)
    except (FlowoptError, OSError):
        return ""  # it decorates a message
