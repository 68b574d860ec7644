"""JSON is taken as Python's own parser takes it, or refused with a reason."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowopt.errors import MalformedModel
from flowopt.formats.bounded_json import parse_json
from flowopt.formats.limits import Limits

_TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('[]{}"\\'))
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**39), 10**39)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(_TEXT, inner),
)


@given(_VALUES, st.booleans())
def test_reads_what_python_writes(value: object, ascii_only: bool) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert parse_json(raw, what="it") == value


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (b'{"b": {"a": 1, "\\u0061": 2}}', "'a' stands twice"),
        (b"[NaN]", "NaN is no JSON number"),
        (b"[-Infinity]", "-Infinity is no JSON number"),
        (b"[1e999]", "beyond every float64"),
        (b"[" + b"1" * 41 + b"]", "41 digits"),
        (b"[" + b"1" * 1_000_000 + b"]", "1,000,000 digits"),
        (b'"\xff"', "byte 1 is not UTF-8"),
        (b'"\xed\xa0\x80"', "not UTF-8"),
        (b'["\\ud800"]', "surrogate"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"", "line 1, column 1"),
        (b"[1,]", "cannot be read as JSON"),
        (b'["\n"]', "control character"),
        (b"[1] 2", "Extra data"),
    ],
)
def test_refuses_what_readers_disagree_about(raw: bytes, reason: str) -> None:
    with pytest.raises(MalformedModel, match=reason) as caught:
        parse_json(raw, what="it")
    assert caught.value.hint


@pytest.mark.parametrize("bracket", [b"[", b'{"a":', b'[{"a":[', b'["\\\\", [', b'[{"\\"": ['])
def test_refuses_deep_nesting_without_recursion(bracket: bytes) -> None:
    with pytest.raises(MalformedModel, match="nested deeper than 200"):
        parse_json(bracket * 100_000, what="it")


def test_nesting_counts_to_the_limit_and_not_inside_strings() -> None:
    assert parse_json(b"[" * 200 + b"]" * 200, what="it")
    assert parse_json(b'["' + b'[\\"' * 1000 + b'"]', what="it")
    with pytest.raises(MalformedModel, match="Limits\\(depth=402\\)"):
        parse_json(b"[" * 202 + b"]" * 202, what="it", limits=Limits(depth=201))
    with pytest.raises(MalformedModel, match="Python's own parser"):
        parse_json(b"[" * 500_000 + b"]" * 500_000, what="it", limits=Limits(depth=1_000_000))


@pytest.mark.parametrize("shift", range(8))
def test_nesting_is_counted_across_chunks(shift: int) -> None:
    # Around the first mebibyte, where one chunk ends, lie a run of backslashes and the end of a string.
    padding = b" " * ((1 << 20) - 5 - shift)
    quiet = b"[" + padding + b'"' + rb"\\" * 4 + rb"\"" + b"[" * 300 + b'"]'
    loud = b"[" + padding + b'"' + rb"\\" * 4 + b'",' + b"[" * 300
    assert parse_json(quiet, what="it")
    with pytest.raises(MalformedModel, match="nested deeper"):
        parse_json(loud, what="it")


def test_refuses_more_bytes_than_the_limit() -> None:
    with pytest.raises(MalformedModel, match="Limits\\(json=12\\)"):
        parse_json(b'"1234567890"', what="it", limits=Limits(json=11))


def test_a_large_graph_takes_seconds() -> None:
    node = {"target": "torch.ops.aten.linear.default", "inputs": [{"arg": {"as_tensor": {"name": "x"}}, "kind": 1}]}
    raw = json.dumps([node] * 50_000).encode()
    start = time.monotonic()
    parse_json(raw, what="it")
    # 6 MB; 50 MB take 4 s on two shared cores, and the rest is for slower machines.
    assert time.monotonic() - start < 5
