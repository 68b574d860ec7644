import pytest
import torch
from torch import Tensor, nn

from flowopt.analysis.norm_parts import batch_affine, gain_and_shift, norm_parts
from flowopt.analysis.norm_sites import NormKind, NormSite, norm_sites
from flowopt.analysis.streams import Placement
from flowopt.program.capture import capture
from flowopt.program.program import Program
from tests.passes.programs import Written, canonical, normal, randomised


def written(module: nn.Module, *inputs: Tensor) -> Program:
    return canonical(capture(randomised(module), inputs))


def image_norms() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.GroupNorm(2, 8),
        nn.InstanceNorm2d(8, affine=True),
    )


def test_norms_are_found_in_graph_order_with_their_channels() -> None:
    program = written(image_norms(), normal(2, 3, 8, 8))
    found = norm_sites(program)
    assert [(s.kind, s.axis, s.channels, s.subtracts_mean, s.position) for s in found] == [
        (NormKind.BATCH, 1, 8, False, 0),
        (NormKind.GROUP, 1, 8, True, 1),
        (NormKind.GROUP, 1, 8, True, 2),
    ]
    assert [(s.source, s.name, s.module) for s in found] == [
        ("conv2d", "getitem", "1"),
        ("getitem", "group_norm", "2"),
        ("group_norm", "instance_norm", "3"),
    ]


def test_a_written_gain_and_shift_belong_to_the_norm() -> None:
    module = Written(
        lambda m, x: m.norm(x) * m.gain + m.shift,
        norm=nn.RMSNorm(6, elementwise_affine=False),
        gain=nn.Parameter(torch.ones(6)),
        shift=nn.Parameter(torch.ones(6)),
    )
    (site,) = norm_sites(written(module, normal(2, 5, 6)))
    assert (site.kind, site.source, site.name, site.axis, site.subtracts_mean) == (NormKind.RMS, "x", "add", 2, False)


def test_a_shift_that_is_written_behind_the_gain_belongs_to_the_norm() -> None:
    module = Written(lambda m, x: m.norm(x) + m.shift, norm=nn.RMSNorm(6), shift=nn.Parameter(torch.ones(6)))
    program = written(module, normal(2, 5, 6))
    (site,) = norm_sites(program)
    assert (site.kind, site.source, site.name) == (NormKind.RMS, "x", "add")
    parts = norm_parts(program.node("rms_norm"))
    assert parts is not None
    gain, shift = gain_and_shift(parts, program.constant)
    assert torch.equal(gain, program.tensors["norm.weight"].double())
    assert torch.equal(shift, program.tensors["shift"].double())


def test_gains_of_the_operator_and_behind_it_multiply() -> None:
    module = Written(
        lambda m, x: m.norm(x) * m.gain + m.shift,
        norm=nn.LayerNorm(6),
        gain=nn.Parameter(torch.ones(6)),
        shift=nn.Parameter(torch.ones(6)),
    )
    program = written(module, normal(2, 5, 6))
    parts = norm_parts(program.node("layer_norm"))
    assert parts is not None
    gain, shift = gain_and_shift(parts, program.constant)
    weight, bias = module.norm.weight.double(), module.norm.bias.double()
    # One product of two numbers in float64.
    torch.testing.assert_close(gain, weight * module.gain.double(), rtol=1e-15, atol=0.0)
    torch.testing.assert_close(shift, bias * module.gain.double() + module.shift.double(), rtol=1e-14, atol=1e-15)


def test_an_eval_batch_norm_is_its_scale_and_shift() -> None:
    norm = randomised(nn.BatchNorm1d(4)).double()
    x = normal(3, 4, 5, dtype=torch.float64)
    program = canonical(capture(norm, (x,)))
    parts = norm_parts(next(n for n in program.graph.nodes if "batch_norm" in n.name))
    assert parts is not None
    scale, shift = batch_affine(parts, program.constant)
    # A root and two products in float64.
    torch.testing.assert_close(scale[:, None] * x + shift[:, None], norm(x), rtol=1e-13, atol=1e-13)


def test_an_epsilon_that_is_not_given_is_the_dtypes() -> None:
    program = capture(nn.RMSNorm(4).eval(), (normal(2, 4),))
    parts = norm_parts(program.node("rms_norm"))
    assert parts is not None
    assert parts.eps == torch.finfo(torch.float32).eps


@pytest.mark.parametrize(("kind", "placement"), [("pre", Placement.PRE), ("post", Placement.POST)])
def test_placement_is_that_of_the_residual_stream(kind: str, placement: Placement) -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        # The entry of a post-norm model is a norm too, as behind BERT's embeddings.
        x = m.first(x) if kind == "post" else x
        for norm, layer in zip(m.norms, m.layers, strict=True):
            x = x + layer(norm(x)) if kind == "pre" else norm(x + layer(x))
        out: Tensor = m.head(m.last(x) if kind == "pre" else x)
        return out

    module = Written(
        forward,
        norms=nn.ModuleList(nn.LayerNorm(4) for _ in range(2)),
        layers=nn.ModuleList(nn.Linear(4, 4) for _ in range(2)),
        first=nn.LayerNorm(4),
        last=nn.LayerNorm(4),
        head=nn.Linear(4, 2),
    )
    found = norm_sites(written(module, normal(2, 3, 4)))
    assert {s.placement for s in found if s.module != "first"} == {placement}


def no_sites() -> list[NormSite]:
    module = Written(
        lambda m, x, gain: torch.rms_norm(m.whole(x), [6], gain) + m.last(x),
        whole=nn.LayerNorm((5, 6)),
        last=nn.InstanceNorm1d(5, track_running_stats=True),
    )
    return list(norm_sites(written(module, normal(2, 5, 6), normal(6))))


def test_norms_over_several_axes_or_with_a_computed_gain_are_no_sites() -> None:
    assert no_sites() == []
