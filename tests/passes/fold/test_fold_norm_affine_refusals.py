"""Where ``fold-norm-affine`` refuses, and why."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowopt.passes.fold.fold_norm_affine import FoldNormAffine
from flowopt.program.capture import capture
from flowopt.testing import assert_refuses
from tests.passes.fold.norms import WIDTH, normed
from tests.passes.programs import Written, normal

X = normal(2, 4, WIDTH)

# Norms that are none, or have nothing to fold.


def test_refuses_a_norm_without_affine_part() -> None:
    module = normed(lambda m, x: m.fc(m.norm(x)), nn.LayerNorm(WIDTH, elementwise_affine=False))
    assert_refuses(FoldNormAffine(), module, (X,), code="no-affine")


def test_refuses_an_rsqrt_without_a_stored_gain() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        def bare() -> Tensor:
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True))

        computed_gain = 1.0 + x.mean(1, keepdim=True)
        not_scaled = torch.rsqrt(x.square() + 1.0)
        one_feature = x[..., :1] * torch.rsqrt(x[..., :1].square() + 1.0)
        return [
            m.fc(bare()),
            m.fc(bare() * computed_gain),
            m.fc(bare() * m.gain_of_rows),
            m.fc(not_scaled),
            m.fc(one_feature * m.gain),
            m.fc(bare().bfloat16() * m.gain),
        ]

    module = normed(forward, gain=nn.Parameter(normal(WIDTH)), gain_of_rows=nn.Parameter(normal(4, 1)))
    assert_refuses(FoldNormAffine(), module, (X,), code="not-a-norm")


def test_refuses_when_the_value_before_the_gain_is_read_elsewhere() -> None:
    def forward(m: Written, x: Tensor) -> tuple[Tensor, Tensor]:
        z = x * torch.rsqrt(x.square().mean(-1, keepdim=True))
        return m.fc(z * m.norm.weight), z

    assert_refuses(FoldNormAffine(), normed(forward), (X,), code="not-a-norm")


def test_refuses_a_norm_over_two_axes() -> None:
    module = nn.Sequential(nn.LayerNorm((4, WIDTH)), nn.Linear(WIDTH, 5)).eval()
    assert_refuses(FoldNormAffine(), module, (X,), code="axis-mismatch")


def test_refuses_a_shift_that_is_scaled_while_it_is_added() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        z = x * torch.rsqrt(x.square().mean(-1, keepdim=True))
        projected: Tensor = m.fc(torch.add(z * m.norm.weight, m.norm.bias, alpha=2))
        return projected

    assert_refuses(FoldNormAffine(), normed(forward), (X,), code="post-norm")


@pytest.mark.parametrize("source", ["gain", "shift"])
def test_refuses_an_affine_part_that_is_an_input(source: str) -> None:
    def forward(m: Written, x: Tensor, given: Tensor) -> Tensor:
        gain, shift = (given, m.norm.bias) if source == "gain" else (m.norm.weight, given)
        projected: Tensor = m.fc(F.layer_norm(x, (WIDTH,), gain, shift))
        return projected

    assert_refuses(FoldNormAffine(), normed(forward), (X, normal(WIDTH)), code="not-constant")


def test_refuses_a_gain_that_the_model_changes() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        m.gain.mul_(0.9)
        projected: Tensor = m.fc(F.layer_norm(x, (WIDTH,), m.gain))
        return projected

    assert_refuses(FoldNormAffine(), normed(forward, gain=normal(WIDTH)), (X,), code="not-constant")


class AnyWidth(nn.Module):
    """A layer norm over however many features come, scaled by an input; the linear layer reads their mean."""

    def forward(self, x: Tensor, gain: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], gain)


def test_refuses_a_free_number_of_features() -> None:
    free = {"x": {1: "width"}, "gain": {0: "width"}}
    inputs = (normal(3, WIDTH), normal(WIDTH))
    assert_refuses(FoldNormAffine(), AnyWidth().eval(), inputs, code="dynamic-shape", dynamic=free)


# Readers that are not linear layers over the norm's features.


def test_refuses_when_the_output_is_added_into_the_residual_stream() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        y = m.norm(x)
        added: Tensor = y + m.fc(y)
        return added

    module = normed(forward, fc=nn.Linear(WIDTH, WIDTH))
    assert_refuses(FoldNormAffine(), module, (X,), code="post-norm")


def test_refuses_when_the_output_is_returned() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        y, viewed, token = m.norm(x), m.norm(x), m.norm(x)
        return [m.fc(y), y, m.fc(viewed), viewed.flatten(0, 1), m.fc(token), token[:, 0]]

    assert_refuses(FoldNormAffine(), normed(forward), (X,), code="graph-output")


def test_refuses_a_reader_that_is_not_linear() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        return [
            m.fc(torch.relu(m.norm(x))),
            m.narrow(m.norm(x)[..., ::2]),
            m.fc(m.norm(x).mT.reshape(2, 4, WIDTH)),
            m.norm(x) @ x.mT,
            F.linear(x, m.norm(x[0])),
            F.linear(x, m.fc.weight, m.fc(x)[0, 0] + m.norm(x)[0, :5, 0].mean()),
            F.conv_transpose1d(m.norm(x).mT, m.kernel),
            m.fc(torch.cat([m.norm(x), x])),
            torch.stack(m.norm(x).unbind(-1)),
            m.fc(m.norm(x).long().float()),
        ]

    module = normed(forward, narrow=nn.Linear(3, 2), kernel=nn.Parameter(normal(WIDTH, 5, 1)))
    assert_refuses(FoldNormAffine(), module, (X,), code="not-linear-reader")


def test_refuses_when_only_the_size_is_read() -> None:
    program = capture(normed(lambda m, x: m.norm(x)), (X,))
    norm, output = program.node("layer_norm"), program.graph.output_node()
    with program.graph.inserting_before(output):
        size = program.graph.call_function(torch.ops.aten.sym_size.int, (norm, 0))
        size.meta["val"] = 2
        kept = program.graph.call_function(torch.ops.aten.slice.Tensor, (program.node("x"), 0, 0, size))
        kept.meta["val"] = program.node("x").meta["val"]
    output.args = ((kept,),)
    assert_refuses(FoldNormAffine(), program, code="not-linear-reader")


def test_refuses_a_linear_layer_that_contracts_another_axis() -> None:
    # Square, so that only the axis tells.
    module = normed(lambda m, x: m.fc(m.norm(x).mT))
    assert_refuses(FoldNormAffine(), module, (normal(2, WIDTH, WIDTH),), code="axis-mismatch")


@pytest.mark.parametrize("source", ["weight", "bias"])
def test_refuses_a_layer_whose_parameters_are_inputs(source: str) -> None:
    def forward(m: Written, x: Tensor, given: Tensor) -> Tensor:
        weight, bias = (given, m.fc.bias) if source == "weight" else (m.fc.weight, given)
        return F.linear(m.norm(x), weight, bias)

    given = normal(5, WIDTH) if source == "weight" else normal(5)
    assert_refuses(FoldNormAffine(), normed(forward), (X, given), code="not-constant")


def test_refuses_a_folded_weight_that_would_overflow() -> None:
    module = normed(lambda m, x: m.fc(m.norm(x)))
    module.norm.weight.data[1] = 3e38
    module.fc.weight.data[0, 1] = 10.0
    assert_refuses(FoldNormAffine(), module, (X,), code="not-finite")


def test_refuses_folded_weights_below_the_normal_numbers() -> None:
    module = normed(lambda m, x: m.fc(m.norm(x)))
    module.norm.weight.data.fill_(3e-5)
    assert_refuses(FoldNormAffine(), module.half(), (X.half(),), code="extreme-scale")


def test_refuses_a_reader_without_recorded_shape() -> None:
    program = capture(normed(lambda m, x: m.narrow(m.norm(x).chunk(2, -1)[0]), narrow=nn.Linear(3, 2)), (X,))
    del program.node("getitem").meta["val"]
    assert_refuses(FoldNormAffine(), program, code="missing-metadata")
