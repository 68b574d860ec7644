"""Load a model by what it is: an archive of ``torch.export``, or a factory in a Python module."""

import re
from pathlib import Path
from typing import Any, Literal

from flowopt.errors import ModelNotFound, UserError
from flowopt.program.loading.archive import load_archive
from flowopt.program.loading.factory import load_factory
from flowopt.program.program import Program

Trust = Literal["data", "weights", "code"]
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def load(model: str | Path, *, trust: Trust = "data", eval_mode: bool = False, **capture_options: Any) -> Program:
    """Load a Program.

    Args:
        model: path of a ``torch.export`` archive (whatever its suffix), or ``package.module:factory``.
        trust: ``code`` is needed for archives, because ``torch.export.load`` can run code that a file holds.
            Naming a factory is consent: it is imported and called.
        eval_mode: capture a factory's module as it behaves in eval mode.
        capture_options: ``dynamic`` and ``dims`` of ``flowopt.capture``, for factories.

    Raises:
        ModelNotFound: no such file, module or factory.
        MalformedModel: the file is no archive.
        Untrusted: an archive without ``trust="code"``.
        UserError: options that do not apply.
    """
    if trust not in ("data", "weights", "code"):
        raise UserError(f"trust={trust!r} must be data, weights or code")
    path = Path(model)
    if path.exists():
        if capture_options:
            raise UserError(
                f"{sorted(capture_options)} do not apply to the archive {path.name}: its dimensions are fixed",
                hint="export it again with other dynamic shapes",
            )
        if eval_mode:
            raise UserError(
                f"the archive {path.name} was captured in one mode and cannot change it",
                hint="export the model again after model.eval()",
            )
        return load_archive(path, trust=trust)
    if _FACTORY.fullmatch(str(model)):
        return load_factory(str(model), eval_mode=eval_mode, **capture_options)
    raise ModelNotFound(
        f"no such file: {model}", hint="a path to a torch.export archive, or package.module:factory for a Python model"
    )
