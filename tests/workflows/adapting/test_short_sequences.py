"""Hybrid attention is trained in its parallel form where sequences are short, and is left in its own."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import flowopt
from flowopt.analysis.attention_sites import attention_sites
from flowopt.ops.attention import InPlaceOfSoftmax, linearization
from flowopt.program.program import Program
from flowopt.workflows.adapting.short_sequences import parallel_where_short


class Attention(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v)


def attention(length: int, longest: int | None) -> Program:
    """Of a fixed length where there is no longest."""
    given = tuple(torch.randn(2, 2, length, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))
    if longest is None:
        return flowopt.capture(Attention().eval(), given)
    dynamic = {name: {2: "tokens"} for name in "qkv"}
    return flowopt.capture(Attention().eval(), given, dynamic=dynamic, dims={"tokens": (2, longest)})


def forms(program: Program, name: str, form: str = "chunked") -> tuple[str, str]:
    """Within and afterwards."""
    sites = attention_sites(program)
    (site,) = sites
    leaf = InPlaceOfSoftmax(linearization(name)(site.shape, form=form))
    with parallel_where_short(program, sites, {site.name: leaf}):
        within = leaf.linear.form
    return within, leaf.linear.form


@pytest.mark.parametrize(("length", "longest"), [(9, None), (128, None), (9, 128)])
def test_a_short_hybrid_is_parallel_within_and_chunked_afterwards(length: int, longest: int | None) -> None:
    assert forms(attention(length, longest), "hybrid") == ("parallel", "chunked")


@pytest.mark.parametrize(("length", "longest"), [(129, None), (9, 129)])
def test_what_may_be_long_stays_in_chunks(length: int, longest: int | None) -> None:
    assert forms(attention(length, longest), "hybrid") == ("chunked", "chunked")


@pytest.mark.parametrize("name", ["chunk-hybrid", "combiner", "hedgehog"])
def test_other_stand_ins_stay_as_they_are(name: str) -> None:
    assert forms(attention(9, None), name) == ("chunked", "chunked")


def test_an_error_within_leaves_the_form_too() -> None:
    program = attention(9, None)
    (site,) = attention_sites(program)
    leaf = InPlaceOfSoftmax(linearization("hybrid")(site.shape))
    with pytest.raises(KeyError), parallel_where_short(program, [site], {site.name: leaf}):
        raise KeyError
    assert leaf.linear.form == "chunked"
