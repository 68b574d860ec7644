"""Which kind of pickle a file is: weights, a checkpoint, a module, or something else."""

import io
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO, Final

from flowopt.formats.kinds import Detected, Kind
from flowopt.formats.limits import MEBIBYTE
from flowopt.formats.pickle_outline import Outline, Part, Sort, outline
from flowopt.formats.printable import printable

MOST_BYTES: Final = 64 * MEBIBYTE
# Before torch 1.6 a file was a row of pickles; the first is this number.
LEGACY_START: Final = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_BEFORE_LEGACY_OBJECT: Final = 3
_MOST_KEYS: Final = 10_000
_MOST_PARTS: Final = 300_000
_MOST_FOREIGN: Final = 10
_SHOWN_KEYS: Final = 4


def detect_legacy(file: BinaryIO, present: int) -> Detected:
    """The kind of a file that starts as ``torch.save`` wrote before torch 1.6."""
    file.seek(0)
    data = io.BytesIO(file.read(MOST_BYTES))
    for _ in range(_BEFORE_LEGACY_OBJECT):
        if not outline(data).is_whole:
            return Detected(Kind.TRUNCATED, "a file of torch.save in its old format without an object", present)
    found = detect_saved(data, present, is_cut=present > MOST_BYTES)
    if data.tell() == present and found.kind is not Kind.TRUNCATED:
        return Detected(Kind.TRUNCATED, f"{found.detail} in torch's old format, without the tensors' bytes", present)
    return found


def detect_saved(data: io.BytesIO, present: int, *, is_cut: bool) -> Detected:
    """The kind of what ``torch.save`` wrote; ``data``: at its pickle, ``is_cut``: not all of it was read."""
    found = outline(data)
    if not found.is_whole and not is_cut and found.opcodes < 2:
        return Detected(Kind.DAMAGED, "a file of torch.save without a readable pickle", present)
    top = found.top
    if isinstance(top, Part) and top.sort is Sort.DICT:
        return _dictionary(found, top, present)
    if isinstance(top, Part) and top.sort is Sort.OBJECT and (top.is_module or not found.is_whole):
        return _described(Kind.PICKLED_MODULE, f"a pickled module of class {_class(top)}", found, present, top)
    return _described(Kind.PICKLE, f"{_noun(top)} saved by torch.save", found, present, top)


def detect_pickle(file: BinaryIO, present: int, *, is_certain: bool) -> Detected | None:
    """The kind of a pickle that torch did not write; None where it is none.

    Args:
        is_certain: the first bytes can hardly be anything but a pickle, so that a damaged one is called so.
    """
    file.seek(0)
    data = io.BytesIO(file.read(MOST_BYTES))
    found = outline(data)
    is_cut = present > MOST_BYTES
    if not found.is_whole and (not is_certain or found.opcodes < 3):
        return None
    top = found.top
    if found.foreign and found.foreign[0].startswith("joblib."):
        return _described(Kind.PICKLE, "a joblib file", found, present, top)
    if not found.is_whole and not is_cut and data.tell() == present:
        return _described(Kind.TRUNCATED, f"a pickle that ends too early ({_noun(top)})", found, present, top)
    if isinstance(top, Part) and top.is_module:
        detail = f"a pickled module of class {_class(top)}, not saved through torch.save"
        return _described(Kind.PICKLE, detail, found, present, top)
    return _described(Kind.PICKLE, f"a pickle: {_noun(top)}", found, present, top)


def _dictionary(found: Outline, top: Part, present: int) -> Detected:
    names = tuple(top.entries)
    shown = ", ".join(printable(name, 40) for name in names[:_SHOWN_KEYS]) + (", ..." if names[_SHOWN_KEYS:] else "")
    # Entries may share their parts: what one has shown to hold nothing is not looked at for the next.
    seen: set[int] = set()
    for name, value in top.entries.items():
        module = next((p for p in _parts(value, seen) if p.is_module), None)
        if module is not None:
            detail = f"a checkpoint whose {printable(name, 40)} is a pickled module of class {_class(module)}"
            return _described(Kind.PICKLED_MODULE, detail, found, present, module, names)
    tensors = sum(1 for value in top.entries.values() if isinstance(value, Part) and value.sort is Sort.TENSOR)
    least = "" if found.is_whole else "at least "
    if tensors == len(names):
        detail = f"a state dict of {least}{tensors:,} tensor{'' if tensors == 1 else 's'}"
    elif any(part.sort is Sort.TENSOR for part in _parts(top, set())):
        detail = f"a checkpoint: weights and more (keys {shown})"
    else:
        return _described(Kind.PICKLE, f"a dictionary without tensors (keys {shown})", found, present, None, names)
    return _described(Kind.STATE_DICT, detail, found, present, None, names)


def _described(
    kind: Kind, detail: str, found: Outline, present: int, top: Part | str | None, keys: tuple[str, ...] = ()
) -> Detected:
    foreign = tuple(printable(name, 120) for name in found.foreign[:_MOST_FOREIGN])
    class_name = _class(top) if isinstance(top, Part) and top.sort is Sort.OBJECT else None
    return Detected(kind, detail, present, None, class_name, keys[:_MOST_KEYS], foreign)


def _noun(top: Part | str) -> str:
    if isinstance(top, str):
        return "a text"
    nouns = {Sort.DICT: "a dictionary", Sort.SEQUENCE: "a list or tuple", Sort.TENSOR: "one tensor"}
    return f"an object of {_class(top)}" if top.sort is Sort.OBJECT else nouns.get(top.sort, "a value")


def _class(part: Part) -> str:
    return printable(part.name, 120)


def _parts(start: Part | str, seen: set[int]) -> Iterator[Part]:
    """Everything below ``start`` but not in ``seen``, breadth first: the outermost module comes before those inside."""
    waiting = deque([start])
    while waiting and len(seen) < _MOST_PARTS:
        part = waiting.popleft()
        if isinstance(part, str) or id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        waiting.extend(part.items)
        waiting.extend(part.entries.values())
