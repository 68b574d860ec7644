"""JSON of an unknown author, parsed so that it can neither exhaust the machine nor mean two things.

Python's parser recurses into nested brackets, keeps the last of two values of one key, takes ``NaN`` and needs time
that grows with the square of a number's digits. Others keep the first value or refuse, so that a text could pass a
check here and be read as something else elsewhere.

Source: RFC 8259, sections 4 (names should be unique), 6 (no NaN, no infinity) and 9 (limits of a parser).
"""

import json
import math
import re
from itertools import accumulate
from typing import Final, NoReturn

from flowopt.errors import MalformedModel
from flowopt.formats.limits import DEFAULT_LIMITS, Limits

_MOST_DIGITS: Final = 40
_CHUNK: Final = 1 << 20
_AGAIN: Final = "download or copy it again, or ask its author to export it again"

_LONG_NUMBER: Final = re.compile(rf"[0-9]{{{_MOST_DIGITS + 1}}}")
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")
_NO_BACKSLASH: Final = re.compile(rb"[^\\]")
_NOT_STRUCTURE: Final = bytes(set(range(256)) - set(b'"[]{}'))
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")


def parse_json(raw: bytes, *, what: str, limits: Limits = DEFAULT_LIMITS) -> object:
    """The value of a JSON text in UTF-8: dict, list, str, int, float, bool or None.

    Args:
        raw: the text; a byte order mark is refused.
        what: names the text in messages, such as ``models/model.json``; printable.
        limits: ``json`` bounds the bytes, ``depth`` the nesting.

    Raises:
        MalformedModel: more bytes or deeper than the limits, not UTF-8, not JSON, one key twice in an object, NaN or
            an infinity (``1e999`` too), an integer of more than 40 digits, or half of a surrogate pair.
    """
    if len(raw) > limits.json:
        raise MalformedModel(
            f"{what} has {len(raw):,} bytes of JSON; the limit is {limits.json:,}",
            hint="if that is meant",
            retry=(("--limit", f"json={len(raw)}"),),
        )
    _require_depth(raw, what, limits.depth)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _malformed(what, f"byte {error.start:,} is not UTF-8") from error
    value = _parsed(text, what)
    # Only an escape can yield half a pair, so nearly no text needs the second pass.
    if _SURROGATE.search(text):
        _require_encodable(value, what)
    return value


def _parsed(text: str, what: str) -> object:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise _malformed(what, f"the key {ascii(twice[:80])} stands twice in one object")
        return found

    def no_constant(name: str) -> NoReturn:
        raise _malformed(what, f"{name} is no JSON number")

    def finite(digits: str) -> float:
        number = float(digits)
        if math.isinf(number):
            raise _malformed(what, f"the number {digits[:40]} is beyond every float64")
        return number

    def short(digits: str) -> int:
        if len(digits.lstrip("-")) > _MOST_DIGITS:
            raise _malformed(what, f"an integer has {len(digits):,} digits; at most {_MOST_DIGITS} make sense")
        return int(digits)

    # A Python call for every integer triples the time of a large graph: only where some number is suspicious.
    parse_int = short if _LONG_NUMBER.search(text) else int
    try:
        return json.loads(
            text, object_pairs_hook=unique, parse_constant=no_constant, parse_float=finite, parse_int=parse_int
        )
    except json.JSONDecodeError as error:
        raise _malformed(what, f"{error.msg} (line {error.lineno}, column {error.colno})") from error
    except RecursionError as error:
        raise _malformed(what, "its brackets are nested deeper than Python's own parser goes") from error


def _require_depth(raw: bytes, what: str, most: int) -> None:
    """Nesting within ``most``, found without recursion, in chunks, before anything is parsed.

    Where the text is no JSON this may count other brackets than a parser, but never fewer: up to its first error a
    parser and this reading agree on what is a string.
    """
    depth, in_string, position = 0, False, 0
    while position < len(raw):
        # A chunk ends behind its run of backslashes, so that no escape is torn apart.
        stop = _NO_BACKSLASH.search(raw, position + _CHUNK - 1)
        end = stop.end() if stop else len(raw)
        chunk = raw[position:end].replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _NOT_STRUCTURE)
        pieces = chunk.split(b'"')
        steps = memoryview(b"".join(pieces[in_string::2]).translate(_STEPS)).cast("b")
        heights = list(accumulate(steps, initial=depth))
        if max(heights) > most:
            raise MalformedModel(
                f"{what} is nested deeper than {most} levels",
                why="parsers recurse into brackets, and too many of them end the process",
                hint="if that is meant; else ask its author to export it again",
                retry=(("--limit", f"depth={most * 2 or 1}"),),
            )
        depth, in_string, position = heights[-1], in_string ^ (len(pieces) % 2 == 0), end


def _require_encodable(value: object, what: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (UnicodeEncodeError, RecursionError) as error:
        raise _malformed(what, "a text in it holds half of a surrogate pair") from error


def _malformed(what: str, problem: str) -> MalformedModel:
    return MalformedModel(f"{what} cannot be read as JSON: {problem}", hint=_AGAIN)
