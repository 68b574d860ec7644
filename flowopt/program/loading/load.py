"""Load a model by what it is: a file of some kind, found in its bytes, or a factory in a Python module."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowopt.errors import ModelNotFound, UserError
from flowopt.formats.detect import detect
from flowopt.formats.digest import file_sha256
from flowopt.formats.kinds import Detected, Kind
from flowopt.formats.limits import DEFAULT_LIMITS, Limits
from flowopt.formats.printable import printable
from flowopt.formats.roads import refusal
from flowopt.program.loading.archive import load_archive
from flowopt.program.loading.example_inputs import Inputs, example_inputs
from flowopt.program.loading.factory import load_factory
from flowopt.program.loading.from_module import program_of_module
from flowopt.program.loading.imported import IMPORTED_NAME
from flowopt.program.loading.pickled import load_pickled
from flowopt.program.loading.trust import Trust, require_trust
from flowopt.program.loading.weights_file import put_into, read_weights, require_factory
from flowopt.program.program import Program, Provenance

__all__ = ["Trust", "load"]

_MOST_NAME = 255


def load(
    model: str | Path,
    *,
    trust: Trust = "data",
    factory: str | None = None,
    shapes: Mapping[str, str] | None = None,
    inputs: Inputs | None = None,
    eval_mode: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    **capture_options: Any,
) -> Program:
    """Load a Program.

    Args:
        model: a file, which is taken for what its bytes say, whatever its suffix (an archive of ``torch.export``, a
            state dictionary, ``.safetensors``, a pickled module), or ``package.module:factory``.
        trust: what the file may do. ``data``: nothing; archives and ``.safetensors`` are read by flowopt.
            ``weights``: state dictionaries too, through torch's restricted unpickler. ``code``: pickled modules and
            ``torch.export.load``, which run what the file says. Naming a factory is consent: it is imported and
            called.
        factory: ``package.module:function`` that builds the module for a file that holds weights alone.
        shapes: example inputs of a module without any, such as ``{"ids": "1x128:int64[0..30521]"}``.
        inputs: the same as tensors by name, or as a ``.npz`` file.
        eval_mode: capture a module in train mode as it behaves in eval mode.
        limits: what reading the file may cost.
        capture_options: ``dynamic`` and ``dims`` of ``flowopt.capture``, for what is captured here.

    Raises:
        ModelNotFound: no such file, module or factory.
        MalformedModel: the file is damaged, or no model.
        Untrusted: it needs more trust.
        UserError: options that do not apply, or are missing; ``retry`` holds them.
    """
    require_trust(trust)
    path = Path(model)
    if not path.exists():
        if not IMPORTED_NAME.fullmatch(str(model)):
            raise ModelNotFound(
                f"no such file: {model}",
                hint="check the path and the current folder; a model in Python is named package.module:factory",
            )
        if factory is not None:
            raise UserError(f"{model} is a factory already: --factory is for files that hold weights alone")
        given = example_inputs(shapes or {}, inputs)
        return load_factory(str(model), eval_mode=eval_mode, inputs=given, **capture_options)
    found = detect(path, limits)
    if found.kind is Kind.EXPORT_ARCHIVE:
        _require_no_options(path, capture_options, shapes, inputs, factory, eval_mode=eval_mode)
        return load_archive(path, trust=trust, limits=limits)
    if found.kind in (Kind.STATE_DICT, Kind.SAFETENSORS):
        require_factory(path, found, trust=trust, factory=factory)
        assert factory is not None
        given = example_inputs(shapes or {}, inputs)
        program = _from_weights(path, found, factory, limits, given, eval_mode, capture_options)
        return _named_after(path, program, trust)
    if found.kind is Kind.PICKLED_MODULE:
        if factory is not None:
            raise UserError(f"{path.name} is {found.detail}: --factory is for files that hold weights alone")
        module = load_pickled(path, found, trust=trust)
        given = example_inputs(shapes or {}, inputs)
        program = program_of_module(module, given, path.name, eval_mode=eval_mode, **capture_options)
        return _named_after(path, program, trust)
    raise refusal(found, str(model))


def _from_weights(
    path: Path,
    found: Detected,
    factory: str,
    limits: Limits,
    inputs: Mapping[str, Any],
    eval_mode: bool,
    options: Mapping[str, Any],
) -> Program:
    weights = read_weights(path, found, limits)
    return load_factory(
        factory,
        eval_mode=eval_mode,
        inputs=inputs,
        weights=lambda module: put_into(module, weights, path.name, factory),
        **options,
    )


def _named_after(path: Path, program: Program, trust: Trust) -> Program:
    """Reports and artifacts speak of the file, rather than of the class that took its weights."""
    # Reports are UTF-8, and the bytes of a file's name need not be.
    source = printable(path.name, _MOST_NAME)
    program.provenance = Provenance(source, program.provenance.torch_version, file_sha256(path), trust)
    return program


def _require_no_options(
    path: Path,
    capture_options: Mapping[str, Any],
    shapes: Mapping[str, str] | None,
    inputs: Inputs | None,
    factory: str | None,
    *,
    eval_mode: bool,
) -> None:
    """An archive is captured already: its sizes and its mode are fixed."""
    given = [*capture_options, *(["shapes"] if shapes else []), *(["inputs"] if inputs is not None else [])]
    if given:
        raise UserError(
            f"{sorted(given)} do not apply to the archive {path.name}: its dimensions are fixed",
            hint="export it again with other dynamic shapes",
        )
    if factory is not None:
        raise UserError(f"the archive {path.name} holds its own graph: --factory is for files that hold weights alone")
    if eval_mode:
        raise UserError(
            f"the archive {path.name} was captured in one mode and cannot change it",
            hint="export the model again after model.eval()",
        )
