import json
from typing import Any

import pytest

from flowopt.errors import MalformedModel, Untrusted
from flowopt.formats.pt2.checks import Place
from flowopt.formats.pt2.tensors import StoredTensor, stored_tensors
from tests.hostile.pt2_archive import WEIGHTS, parts

RECORDS = {"weight_0": (128, 64), "weight_1": (512, 16)}


def config(**meta: Any) -> Any:
    found = json.loads(parts()[WEIGHTS])
    found["config"]["layer.bias"]["tensor_meta"] |= meta
    return found


def read(found: Any) -> tuple[StoredTensor, ...]:
    return stored_tensors(found, RECORDS, Place("config"))


def integers(*values: int) -> list[dict[str, int]]:
    return [{"as_int": value} for value in values]


def test_says_where_each_tensor_lies() -> None:
    weight, bias = read(config())
    assert weight == StoredTensor("layer.weight", 7, (4, 4), (4, 1), 0, (128, 64), True)
    assert bias == StoredTensor("layer.bias", 7, (4,), (1,), 0, (512, 16), True)


@pytest.mark.parametrize(
    ("sizes", "strides", "first"),
    [
        ((2,), (1,), 2),
        ((2,), (3,), 0),
        ((2, 2), (1, 2), 0),
        ((100,), (0,), 3),
        ((0,), (1,), 4),
        ((), (), 3),
        ((1,), (1 << 40,), 0),
    ],
)
def test_a_view_inside_its_record(sizes: tuple[int, ...], strides: tuple[int, ...], first: int) -> None:
    found = read(config(sizes=integers(*sizes), strides=integers(*strides), storage_offset={"as_int": first}))[1]
    assert (found.shape, found.strides, found.first) == (sizes, strides, first)


@pytest.mark.parametrize(
    ("sizes", "strides", "first"),
    [((2,), (1,), 3), ((2,), (4,), 0), ((5,), (1,), 0), ((0,), (1,), 5), ((), (), 4), ((1 << 23,), (0,), 0)],
)
def test_a_view_that_reaches_outside_is_refused(sizes: tuple[int, ...], strides: tuple[int, ...], first: int) -> None:
    with pytest.raises(MalformedModel, match="reach outside their record"):
        read(config(sizes=integers(*sizes), strides=integers(*strides), storage_offset={"as_int": first}))


@pytest.mark.parametrize(("dtype", "fits"), [(8, 2), (6, 8), (2, 16), (11, 1), (12, 16)])
def test_the_type_decides_how_many_fit(dtype: int, fits: int) -> None:
    assert read(config(dtype=dtype, sizes=integers(fits)))[1].shape == (fits,)
    with pytest.raises(MalformedModel):
        read(config(dtype=dtype, sizes=integers(fits + 1)))


def test_a_pickle_is_refused() -> None:
    found = config()
    found["config"]["layer.bias"]["use_pickle"] = True
    with pytest.raises(Untrusted) as caught:
        read(found)
    assert caught.value.retry == (("--trust", "code"),)


def test_a_size_that_is_an_expression_is_refused() -> None:
    with pytest.raises(MalformedModel):
        read(config(sizes=[{"as_expr": {"expr_str": "Symbol('s0')"}}]))
