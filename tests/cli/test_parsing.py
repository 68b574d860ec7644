import pytest

from flowopt.cli.parsing import parse_dynamic, parse_require
from flowopt.errors import UserError


def test_a_dimension_has_several_places_and_a_range() -> None:
    free = parse_dynamic(["batch=ids:0,mask:0:1..64", "sequence=ids:1,mask:1"])
    assert free.dynamic == {"ids": {0: "batch", 1: "sequence"}, "mask": {0: "batch", 1: "sequence"}}
    assert free.dims == {"batch": (1, 64)}


def test_a_range_may_be_open_above() -> None:
    assert parse_dynamic(["batch=x:0:2.."]).dims == {"batch": (2, None)}


def test_nothing_asked_leaves_a_factorys_own_dimensions() -> None:
    assert parse_dynamic([]).capture_options() == {}


def test_anything_asked_replaces_both_of_a_factorys_own() -> None:
    assert parse_dynamic(["batch=x:0"]).capture_options() == {"dynamic": {"x": {0: "batch"}}, "dims": {}}


@pytest.mark.parametrize(
    ("specs", "complaint"),
    [
        (["x:0"], "does not start with a name and ="),
        (["=x:0"], "does not start with a name and ="),
        (["2b=x:0"], "does not start with a name and ="),
        (["batch="], "'' is not input:axis"),
        (["batch=x"], "'x' is not input:axis"),
        (["batch=x:first"], "'x:first' is not input:axis"),
        (["batch=x:-1"], "'x:-1' is not input:axis"),
        (["batch=x:0,"], "'' is not input:axis"),
        (["batch=x:0:1-64"], "'x:0:1-64' is not input:axis"),
        (["batch=x:0:..64"], "the range is not min..max"),
        (["batch=x:0:64..1"], "64..1 leaves nothing free"),
        (["batch=x:0:7..7"], "7..7 leaves nothing free"),
        (["batch=x:0", "batch=y:0"], "names the dimension 'batch' twice"),
        (["batch=x:0", "rows=x:0"], "two names, 'batch' and 'rows'"),
    ],
)
def test_refuses_another_form_of_dynamic(specs: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=f".*{complaint.replace('.', '[.]')}"):
        parse_dynamic(specs)


def test_requirements_are_names_and_counts() -> None:
    assert parse_require(["fold-batch-norm:12", "fold-norm-affine:0"]) == {"fold-batch-norm": 12, "fold-norm-affine": 0}


@pytest.mark.parametrize("text", ["fold-batch-norm", "fold-batch-norm:", ":3", "fold-batch-norm:-1", "a:b:3"])
def test_refuses_another_form_of_require(text: str) -> None:
    with pytest.raises(UserError, match="is not name:count"):
        parse_require([text])


def test_refuses_a_pass_that_is_required_twice() -> None:
    with pytest.raises(UserError, match="twice"):
        parse_require(["fold-batch-norm:1", "fold-batch-norm:2"])
