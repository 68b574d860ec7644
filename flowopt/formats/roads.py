"""For every kind of file that flowopt cannot go on with: what it is, why, and which road leads on."""

import shlex
from typing import Final

from flowopt.errors import FlowoptError, InternalError, MalformedModel, Untrusted, UserError
from flowopt.formats.kinds import Detected, Kind
from flowopt.formats.printable import printable

_MOST_NAME: Final = 200
_EXPORT: Final = 'torch.export.save(torch.export.export(model, args), "model.pt2")'
_ASK: Final = f"ask its author for what this line writes:\n{_EXPORT}"
_FACTORY: Final = "flowopt optimize my_model:factory"
_FETCH: Final = "download or copy it again, and compare its size with the original's"
_COMPILED: Final = "it is a compiled program: it holds code, which nothing here can rewrite or check"
# Commands stand on lines of their own, to be copied whole.
_WEIGHTS_OF_SCRIPT: Final = (
    "start from the original model, in a factory:\n"
    f"{_FACTORY}\n"
    "or, if you trust its author, save its weights in Python and put them into the original model:\n"
    'torch.save(torch.jit.load("{name}").state_dict(), "weights.pt")\n'
    "flowopt optimize weights.pt --trust weights --factory my_model:factory"
)
_GO_ON: Final = frozenset({Kind.EXPORT_ARCHIVE, Kind.STATE_DICT, Kind.PICKLED_MODULE, Kind.SAFETENSORS})
_COMPILED_KINDS: Final = frozenset({Kind.TORCHSCRIPT, Kind.AOTINDUCTOR, Kind.EXECUTORCH, Kind.ORT, Kind.PROGRAM})

# Why and what to try, for the kinds that are simply something else.
_OTHERS: Final = {
    Kind.PICKLE: (
        "reading a pickle runs what its author wrote; flowopt takes those in which torch.save put weights or a module",
        _ASK,
    ),
    Kind.GGUF: ("it holds weights for llama.cpp, and no graph", f"take the original model instead: {_FACTORY}"),
    Kind.TENSORFLOW: ("flowopt works on PyTorch models", "ask its author for a PyTorch version of the model"),
    Kind.NUMPY: ("it holds numbers without a graph", f"build the model around them in a factory: {_FACTORY}"),
    Kind.ARCHIVE: ("flowopt does not unpack archives", f"unpack it and give the model inside, or {_ASK}"),
    Kind.TEXT: ("it is no model; servers send texts like this instead of a file that they refuse", _FETCH),
    Kind.UNKNOWN: ("it may be encrypted, compressed, or cut out of another file", _ASK),
}


def refusal(detected: Detected, name: str) -> FlowoptError:
    """The error to raise for a file that no reader of flowopt takes.

    Args:
        name: how the user named the file.

    Returns:
        Untrusted for compiled programs, UserError for what is right elsewhere, MalformedModel for everything else,
        and InternalError for the kinds that have readers: they are not refused here.
    """
    shown = printable(name, _MOST_NAME)
    is_what = f"{shown} is {detected.detail}"
    if detected.kind in _GO_ON:
        return InternalError(f"{is_what}, which has a reader and cannot be refused as unreadable")
    if detected.kind in _COMPILED_KINDS:
        return Untrusted(
            f"refused {shown}: it is {detected.detail}",
            why=_why_compiled(detected.kind),
            hint=_road_from(detected.kind, shown),
        )
    match detected.kind:
        case Kind.ONNX:
            return UserError(
                f"{is_what}, and flowopt works on captured PyTorch models",
                hint=f"give the model that it was made from: {_FACTORY}\n"
                "to compare an artifact with its model: flowopt verify MODEL artifact_folder",
            )
        case Kind.FOLDER:
            return UserError(
                f"{is_what}, not a model file",
                hint="give the model file inside it\n"
                f"to compare an artifact with its model: flowopt verify MODEL {shlex.quote(shown)}",
            )
        case Kind.LFS_POINTER:
            return MalformedModel(
                f"{is_what}, not the model",
                why="the repository was cloned without its large files",
                hint="run this in the repository: git lfs pull",
            )
        case Kind.HTML:
            return MalformedModel(
                f"{is_what}, not a model",
                why="the address gave a page instead of the file: one that asks to log in, or that reports an error",
                hint="download it again, from the address of the file itself",
            )
        case Kind.EMPTY:
            return MalformedModel(f"{shown} is empty: it has 0 bytes", hint="download or export it again")
        case Kind.TRUNCATED:
            return MalformedModel(f"{shown} is cut off: {detected.detail}; {_bytes(detected)}", hint=_FETCH)
        case Kind.DAMAGED:
            return MalformedModel(f"{shown} is damaged: {detected.detail}", hint=_FETCH)
    why, hint = _OTHERS[detected.kind]
    return MalformedModel(f"{is_what}, not a model that flowopt can read", why=why, hint=hint)


def _why_compiled(kind: Kind) -> str:
    if kind is Kind.ORT:
        return "it was made for one machine by onnxruntime, and no graph in it could be rewritten and checked"
    return _COMPILED


def _road_from(kind: Kind, name: str) -> str:
    if kind is Kind.TORCHSCRIPT:
        return _WEIGHTS_OF_SCRIPT.format(name=name.replace('"', '\\"'))
    if kind is Kind.PROGRAM:
        return f"give the model that it was made from: {_FACTORY}"
    return f"give the model that it was compiled from: {_FACTORY}\nor {_ASK}"


def _bytes(detected: Detected) -> str:
    if detected.size is None:
        return f"it has {detected.present:,} bytes"
    # Of a cut-off message only the part that was being read is known to be promised.
    return f"it has {detected.present:,} of {detected.size:,} bytes"
