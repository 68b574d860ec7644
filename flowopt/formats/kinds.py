"""What a file can turn out to be."""

import enum
from dataclasses import dataclass
from typing import final


@final
class Kind(enum.StrEnum):
    """The kinds of files that people hand to a tool which asks for a model. Every file is exactly one of them."""

    EXPORT_ARCHIVE = enum.auto()
    """``torch.export.save``: a zip archive with a graph in JSON."""
    STATE_DICT = enum.auto()
    """``torch.save`` of tensors in a dictionary, or of a checkpoint that holds them."""
    PICKLED_MODULE = enum.auto()
    """``torch.save`` of a module, alone or inside a checkpoint."""
    PICKLE = enum.auto()
    """Any other pickle: joblib, a list, a module that was not saved through torch."""
    TORCHSCRIPT = enum.auto()
    """``torch.jit.save``, also its mobile form."""
    SAFETENSORS = enum.auto()
    ONNX = enum.auto()
    ORT = enum.auto()
    """The flatbuffer of onnxruntime."""
    AOTINDUCTOR = enum.auto()
    """A package of ``torch._inductor.aoti_compile_and_package``: a compiled library."""
    EXECUTORCH = enum.auto()
    PROGRAM = enum.auto()
    """Machine code of an operating system: a library or an executable."""
    GGUF = enum.auto()
    TENSORFLOW = enum.auto()
    """Keras, HDF5, SavedModel and TensorFlow Lite."""
    NUMPY = enum.auto()
    ARCHIVE = enum.auto()
    """tar, gzip, 7z, or a zip archive of something that is no model."""
    LFS_POINTER = enum.auto()
    HTML = enum.auto()
    """A web page or an XML document."""
    TEXT = enum.auto()
    """JSON and program text too."""
    FOLDER = enum.auto()
    EMPTY = enum.auto()
    TRUNCATED = enum.auto()
    """Starts as a known format and ends too early."""
    DAMAGED = enum.auto()
    """Starts as a known format and then contradicts itself."""
    UNKNOWN = enum.auto()


@final
@dataclass(frozen=True, slots=True)
class Detected:
    """What one file is, found in its bytes.

    Attributes:
        detail: a phrase that continues "the file is", such as ``a state dict of 12 tensors``; safe to print.
        present: bytes of the file.
        size: bytes that it should have, where a pointer or a header says so; for a cut-off file at least that many.
        class_name: class of a pickled module or object, as the file names it; safe to print.
        keys: the first keys of a pickled dictionary, as they stand in the file: not safe to print.
        foreign: the first names in a pickle that are more than data, safe to print: reading them can run code. For
            messages alone: that there are none is no proof of safety.
    """

    kind: Kind
    detail: str
    present: int = 0
    size: int | None = None
    class_name: str | None = None
    keys: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
