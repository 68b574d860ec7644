"""The outermost object of a pickle, found by following its opcodes without building anything.

A pickle is a program for a stack machine. This runs it on outlines: a name instead of a class, keys and values instead
of a dictionary, nothing instead of a number. No name is looked up and no function is called.

Source: Python's ``pickletools``, which documents every opcode with what it takes from the stack and leaves there.
"""

import io
import pickletools
import re
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, final

MOST_OPCODES: Final = 300_000
_MOST_NAMES: Final = 100
_MOST_NAME: Final = 200
# Of a call's arguments only the first can be a module's state; a file may repeat a call with very many of them.
_MOST_ARGUMENTS: Final = 16

_DICTIONARIES: Final = frozenset({"collections.OrderedDict", "collections.defaultdict", "collections.Counter"})
_TENSORS: Final = re.compile(
    r"torch\._utils\._rebuild_(?!device_tensor_from_numpy)\w*|torch\._tensor\._rebuild_from_type(_v2)?"
    r"|torch\.nn\.parameter\.(Parameter|Buffer)|torch\.Tensor"
)
_DATA: Final = re.compile(
    r"torch\.\w*Storage|torch\.storage\.(Typed|Untyped)Storage|torch\.(Size|device)|torch\.(b?float|complex)\w*"
    r"|torch\.q?u?int\w+|torch\.(bool|half|double|long|strided|sparse_\w+|per_(tensor|channel)_\w+)"
    r"|torch\.serialization\._get_layout|_codecs\.encode|(__builtin__|builtins)\.(set|frozenset|slice|complex|int"
    r"|float|bool|bytearray|range|list|dict|tuple|object)|(copyreg|copy_reg)\.(_reconstructor|__newobj__)"
    r"|numpy\.(dtype|ndarray)|numpy\.dtypes\.\w+|numpy\.(_core|core)\.(multiarray\.(scalar|_reconstruct)|numeric\._frombuffer)"
)
_CLASS_FIRST: Final = re.compile(r"(copyreg|copy_reg)\.(_reconstructor|__newobj__|__newobj_ex__)")
_GETATTR: Final = frozenset({"builtins.getattr", "__builtin__.getattr"})


class Sort(Enum):
    """What a part of a pickle is, as far as a message needs it."""

    VALUE = auto()
    NAME = auto()
    DICT = auto()
    SEQUENCE = auto()
    TENSOR = auto()
    OBJECT = auto()
    MARK = auto()


@final
@dataclass(slots=True, eq=False)
class Part:
    """One object on the stack. ``name``: of a class or function. ``is_module``: it has what ``torch.nn.Module`` has."""

    sort: Sort
    name: str = ""
    items: "list[Part | str]" = field(default_factory=list)
    entries: "dict[str, Part | str]" = field(default_factory=dict)
    is_module: bool = False


@final
@dataclass(frozen=True, slots=True)
class Outline:
    """The outermost object, the names that are more than data, and whether the pickle was followed to its end.

    ``problem`` says where following it failed; the outermost object is then what lay at the bottom of the stack.
    """

    top: Part | str
    foreign: tuple[str, ...]
    is_whole: bool
    opcodes: int
    problem: str = ""


_VALUE: Final = Part(Sort.VALUE)
_MARK: Final = Part(Sort.MARK)


def outline(file: io.BytesIO) -> Outline:
    """Follow one pickle from the current position; afterwards the position is behind it.

    Never raises for what the pickle holds: a problem is told in the result.
    """
    stack: list[Part | str] = []
    memo: dict[int, Part | str] = {}
    foreign: dict[str, None] = {}
    count, problem = 0, ""
    try:
        for opcode, argument, _ in pickletools.genops(file):
            count += 1
            if opcode.name == "STOP":
                return Outline(stack[-1], tuple(foreign), True, count)
            if count > MOST_OPCODES:
                problem = f"more than {MOST_OPCODES:,} opcodes"
                break
            _step(opcode, argument, stack, memo)
            top = stack[-1] if stack else _VALUE
            if (
                isinstance(top, Part)
                and top.sort is Sort.NAME
                and len(foreign) < _MOST_NAMES
                and not _is_data(top.name)
            ):
                foreign[top.name] = None
    except (ValueError, IndexError, KeyError, OverflowError, AttributeError) as error:
        problem = f"{type(error).__name__} at opcode {count:,}"
    bottom = next((part for part in stack if part is not _MARK), _VALUE)
    return Outline(bottom, tuple(foreign), False, count, problem)


def _is_data(name: str) -> bool:
    return name in _DICTIONARIES or bool(_TENSORS.fullmatch(name) or _DATA.fullmatch(name))


def _step(
    opcode: pickletools.OpcodeInfo, argument: object, stack: list[Part | str], memo: dict[int, Part | str]
) -> None:
    match opcode.name:
        case "PUT" | "BINPUT" | "LONG_BINPUT" if isinstance(argument, int):
            memo[argument] = stack[-1]
        case "MEMOIZE":
            memo[len(memo)] = stack[-1]
        case "GET" | "BINGET" | "LONG_BINGET" if isinstance(argument, int):
            stack.append(memo[argument])
        case "MARK":
            stack.append(_MARK)
        case "DUP":
            stack.append(stack[-1])
        case "GLOBAL":
            stack.append(_name(*str(argument).split(" ", 1)))
        case "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(_name(module, name))
        case "EMPTY_DICT":
            stack.append(Part(Sort.DICT))
        case "EMPTY_LIST" | "EMPTY_SET" | "EMPTY_TUPLE":
            stack.append(Part(Sort.SEQUENCE))
        case "SETITEM" | "SETITEMS" | "APPEND" | "APPENDS" | "ADDITEMS" | "BUILD":
            _fill(opcode.name, stack)
        case _:
            _take_and_leave(opcode, argument, stack)


def _fill(name: str, stack: list[Part | str]) -> None:
    """The opcodes that put what lies on top of the stack into the object below it."""
    if name.endswith("S"):
        items = _popped_to_mark(stack)
    else:
        items = [stack.pop() for _ in range(2 if name == "SETITEM" else 1)][::-1]
    owner = stack[-1]
    if not isinstance(owner, Part) or owner in (_VALUE, _MARK):
        return
    if name == "BUILD":
        owner.is_module |= _has_modules(items)
    elif name.startswith("SETITEM"):
        owner.entries.update(_pairs(items))
    else:
        owner.items += items


def _take_and_leave(opcode: pickletools.OpcodeInfo, argument: object, stack: list[Part | str]) -> None:
    """Every other opcode: take from the stack what ``pickletools`` says, and leave one thing."""
    needs = opcode.stack_before
    if pickletools.markobject in needs:
        taken = _popped_to_mark(stack)
    else:
        taken = [stack.pop() for _ in needs][::-1]
    if not opcode.stack_after:
        return
    match opcode.name:
        case "REDUCE" | "NEWOBJ" | "NEWOBJ_EX":
            arguments = taken[1]
            stack.append(_made(taken[0], arguments.items[:_MOST_ARGUMENTS] if isinstance(arguments, Part) else []))
        case "OBJ":
            stack.append(_made(taken[0], taken[1 : _MOST_ARGUMENTS + 1]))
        case "INST":
            stack.append(_made(_name(*str(argument).split(" ", 1)), taken[:_MOST_ARGUMENTS]))
        case "DICT":
            stack.append(Part(Sort.DICT, entries=_pairs(taken)))
        case "LIST" | "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3" | "FROZENSET":
            stack.append(Part(Sort.SEQUENCE, items=taken))
        case "BINPERSID":
            stack.append(_persistent(taken[0]))
        case _:
            stack.append(argument if isinstance(argument, str) else _VALUE)


def _name(*words: Part | str) -> Part:
    # Shortened, because a file can give one name of many megabytes again and again.
    return Part(Sort.NAME, ".".join(word[:_MOST_NAME] if isinstance(word, str) else "?" for word in words))


def _made(maker: Part | str, arguments: list[Part | str]) -> Part:
    name = maker.name if isinstance(maker, Part) else "?"
    first = arguments[0] if arguments else _VALUE
    if _CLASS_FIRST.fullmatch(name) and isinstance(first, Part):
        name = first.name
    if name in _GETATTR and isinstance(first, Part) and first.name and len(arguments) > 1:
        # A class inside a class: protocols below 4 have no other way to name it.
        return _name(first.name, arguments[1])
    if name in _DICTIONARIES:
        return Part(Sort.DICT)
    if _TENSORS.fullmatch(name):
        return Part(Sort.TENSOR)
    if _is_data(name):
        return Part(Sort.VALUE)
    return Part(Sort.OBJECT, name, is_module=_has_modules(arguments))


def _persistent(identity: Part | str) -> Part | str:
    """What torch stores outside the pickle: a storage, or in its old format a class with its source text."""
    items = identity.items if isinstance(identity, Part) else []
    return items[1] if len(items) > 1 and items[0] == "module" else _VALUE


def _has_modules(parts: list[Part | str]) -> bool:
    """Whether a state among ``parts`` is that of a ``torch.nn.Module``; a state can stand in a tuple with slots."""
    inner = [item for part in parts if isinstance(part, Part) and part.sort is Sort.SEQUENCE for item in part.items[:2]]
    return any(isinstance(p, Part) and {"_modules", "_parameters"} <= p.entries.keys() for p in (*parts, *inner))


def _popped_to_mark(stack: list[Part | str]) -> list[Part | str]:
    items: list[Part | str] = []
    while (part := stack.pop()) is not _MARK:
        items.append(part)
    return items[::-1]


def _pairs(items: list[Part | str]) -> dict[str, Part | str]:
    # A key that is no text keeps its value countable.
    keys = (key if isinstance(key, str) else f"#{index}" for index, key in enumerate(items[::2]))
    return dict(zip(keys, items[1::2], strict=False))
