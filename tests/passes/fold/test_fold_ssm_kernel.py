"""``fold-ssm-kernel``: what it recognises, and that what it makes is the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowopt.ops.ssm import Discretization, kernel_of
from flowopt.passes.fold.fold_ssm_kernel import FoldSsmKernel, Form
from flowopt.pipeline.runner import PipelineRun, run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.testing import assert_rewrites
from flowopt.workflows.pipelines import Pipeline
from tests.passes.fold.state_spaces import CHANNELS, fft, inputs, layer, written
from tests.passes.programs import Written, decomposed, normal

TRANSFORMS = {"aten.fft_rfft": 0, "aten.fft_irfft": 0, "aten._fft_r2c": 0, "aten._fft_c2r": 0}
CONV = TRANSFORMS | {"aten.conv1d": 1, "aten.matmul": 0}
CHUNKED = TRANSFORMS | {"aten.conv1d": 0, "aten.matmul": 2}
FREE: dict[str, Any] = {"dynamic": {"u": {0: "batch", 2: "length"}}, "dims": {"length": (1, 130)}}


def assert_folds(
    model: nn.Module | Program, *u: Tensor, after: dict[str, int] = CONV, form: Form = "auto", **options: Any
) -> PipelineRun:
    run = assert_rewrites(FoldSsmKernel(form=form), model, u, before={}, after=after, **options)
    assert len(run.records[0].applied) == 1
    return run


@pytest.mark.parametrize("discretization", ["zoh", "bilinear", "dss"])
@pytest.mark.parametrize("length", [1, 2, 63])
def test_a_short_sequence_is_one_convolution(discretization: Discretization, length: int) -> None:
    assert_folds(layer(discretization=discretization, seed=length), inputs(length), after=CONV | {"aten.exp": 0})


@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
def test_a_long_sequence_is_chunks_with_a_state(discretization: Discretization) -> None:
    assert_folds(layer(discretization=discretization), inputs(200), after=CHUNKED | {"aten.exp": 0})


@pytest.mark.parametrize("length", [65, 128, 129])
def test_lengths_around_a_whole_number_of_chunks(length: int) -> None:
    assert_folds(layer(seed=length), inputs(length, batch=1), after=CHUNKED)


def test_the_kernel_of_dss_is_stored_for_its_length() -> None:
    assert_folds(layer(discretization="dss"), inputs(100), after=CHUNKED)


@pytest.mark.parametrize(("form", "after"), [("conv", CONV), ("chunked", CHUNKED), ("fft", {"aten.fft_rfft": 1})])
def test_every_form_is_the_same(form: Form, after: dict[str, int]) -> None:
    assert_folds(layer(), inputs(70), form=form, after=after)


@pytest.mark.parametrize(("form", "after"), [("auto", CHUNKED), ("conv", CONV)])
def test_a_free_length_up_to_a_largest(form: Form, after: dict[str, int]) -> None:
    run = assert_folds(layer(), inputs(40), form=form, after=after, **FREE)
    before = capture(layer(), (inputs(40),), **FREE)
    for length in (1, 64, 65, 130):
        u = inputs(length, batch=3)
        wanted, made = before.run(u), run.program.run(u)
        assert isinstance(wanted, Tensor) and isinstance(made, Tensor)
        torch.testing.assert_close(made, wanted, atol=1e-4, rtol=1e-4)  # the original's phases, in float32


def test_a_small_chunk_carries_the_state_farther() -> None:
    assert_rewrites(FoldSsmKernel(form="chunked", chunk=4), layer(), (inputs(63),), before={}, after=CHUNKED)


@pytest.mark.parametrize("form", ["conv", "chunked", "fft"])
@pytest.mark.parametrize("special", [float("nan"), float("inf")])
def test_a_special_number_spreads_over_its_channel_alone(form: Form, special: float) -> None:
    u = inputs(100)
    run = run_passes(capture(layer(), (u,)), [FoldSsmKernel(form=form)])
    u = u.clone()
    u[1, 2, 99] = special
    made = run.program.run(u)
    assert isinstance(made, Tensor)
    wanted = torch.ones(2, CHANNELS, 100, dtype=torch.bool)
    wanted[1, 2] = False
    assert torch.equal(made.isfinite(), wanted)


def test_the_kernel_is_computed_in_float64_and_rounded_once() -> None:
    model = layer()
    run = assert_folds(model, inputs(30))
    (weight,) = (t for t in run.program.tensors.values() if t.shape == (CHANNELS, 1, 30))
    taps = kernel_of(model.system(), 30)
    taps[:, 0] += model.D.detach().double()
    # Its own arithmetic adds the skip in another order than the graph's.
    torch.testing.assert_close(weight[:, 0].flip(-1), taps.float(), atol=0, rtol=2e-7)  # one unit in the last place


def test_channels_last_are_turned_around() -> None:
    def forward(m: Written, u: Tensor) -> Tensor:
        y = fft(u, m.K.mT, 24, dim=-2)[:, :12]
        return y + u * m.D

    assert_folds(written(forward), inputs(12).mT.contiguous())
    assert_folds(written(forward), inputs(12).mT.contiguous(), form="fft", after={"aten.fft_rfft": 1})


def test_the_transposed_layer_of_the_official_code() -> None:
    model = Written(lambda m, u: m.layer(u.transpose(-1, -2)).transpose(-1, -2), layer=layer()).eval()
    assert_folds(model, inputs(70).mT.contiguous(), after=CHUNKED)


SPELLINGS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "no-skip": lambda m, u: fft(u, m.K, 24)[..., :12],
    "skip-first": lambda m, u: m.D[:, None] * u + fft(u, m.K, 24)[..., :12],
    "one-skip": lambda m, u: fft(u, m.K, 24)[..., :12] + u * m.D[:1, None],
    "another-skip": lambda m, u: fft(u, m.K, 24)[..., :12] + u.sin() * m.D[:, None],
    "doubled-sum": lambda m, u: fft(u, m.K, 24)[..., :12] + u * u,
    "kernel-first": lambda m, u: torch.fft.irfft(torch.fft.rfft(m.K, 24) * torch.fft.rfft(u, 24), 24)[..., :12],
    "longer": lambda m, u: fft(u, m.K, 32)[..., :12],
    "just-enough": lambda m, u: fft(u, m.K, 23)[..., :12],
    "odd": lambda m, u: fft(u, m.K, 25)[..., :12],
    "fewer-taps": lambda m, u: fft(u, m.K[:, :5], 16)[..., :12],
    "more-taps": lambda m, u: fft(u[..., :7], m.K, 24)[..., :7],
    "fewer-results": lambda m, u: fft(u, m.K, 24)[..., :9] + u[..., :9] * m.D[:, None],
    "padded": lambda m, u: fft(nn.functional.pad(u, (0, 12)), nn.functional.pad(m.K, (0, 12)), 24)[..., :12],
    "padded-in-front": lambda m, u: fft(nn.functional.pad(u, (2, 0)), m.K, 32)[..., :14],
    "with-a-batch-axis": lambda m, u: fft(u, m.K[None], 24)[..., :12],
    "ortho": lambda m, u: (
        torch.fft.irfft(
            torch.fft.rfft(u, 24, norm="ortho") * torch.fft.rfft(m.K, 24), 24, norm="ortho"
        )[..., :12]
    ),
    "double": lambda m, u: fft(u.double(), m.K.double(), 24)[..., :12].float() + u * m.D[:, None],
}  # fmt: skip


def test_other_spellings() -> None:
    model = written(lambda m, u: [forward(m, u) for forward in SPELLINGS.values()])
    after = TRANSFORMS | {"aten.conv1d": len(SPELLINGS)}
    run = assert_rewrites(FoldSsmKernel(), model, (inputs(12),), before={}, after=after)
    assert len(run.records[0].applied) == len(SPELLINGS)


def test_transforms_that_are_decomposed() -> None:
    assert_folds(decomposed(layer(), inputs(20)))


POWERS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "pow": lambda a, c, length: 2 * (c[..., None] * a.exp()[..., None] ** torch.arange(length)).sum(1).real,
    "states-last": lambda a, c, length: (
        torch.einsum("hn,hln->hl", c, (a[:, None] * torch.arange(length)[:, None]).exp()).real
    ),
    "states-first": lambda a, c, length: (
        torch.einsum("nh,nhl->hl", c.mT, (a.mT[..., None] * torch.arange(length)).exp()).real
    ),
    "cast": lambda a, c, length: (c[:, None] @ (a[..., None] * torch.arange(length).to(a)).exp()).squeeze(1).real,
    "counted-in-floats": lambda a, c, length: (
        torch.einsum("hn,hnl->hl", c, (a[..., None] * torch.arange(0, length, dtype=torch.float32)).exp()).real
    ),
    "viewed": lambda a, c, length: (
        torch.einsum("hn,hnl->hl", c, (a[..., None] * torch.arange(length).view(1, 1, length)).exp()).real
    ),
    "one-channel-axis-more": lambda a, c, length: (
        torch.einsum("chn,hnl->chl", c[None], (a[..., None] * torch.arange(length)).exp()).real
    ),
    "with-conjugates": lambda a, c, length: (
        torch.einsum(
            "hn,hnl->hl",
            torch.cat([c, c.conj()], 1),
            (torch.cat([a, a.conj()], 1)[..., None] * torch.arange(length)).exp(),
        ).real
    ),
}  # fmt: skip


def test_other_spellings_of_sums_of_powers() -> None:
    def forward(m: Written, u: Tensor) -> list[Tensor]:
        a, c, length = torch.view_as_complex(m.p), torch.view_as_complex(m.c), u.shape[-1]
        # Inputs of their own: a spectrum that is read twice is refused.
        given = (u + at for at in range(len(POWERS)))
        pairs = zip(given, POWERS.values(), strict=True)
        return [fft(x, kernel(a, c, length), 2 * length)[..., :length] for x, kernel in pairs]

    free: dict[str, Any] = {"dynamic": {"x": {2: "length"}}, "dims": {"length": (65, 90)}}
    after = TRANSFORMS | {"aten.matmul": 2 * len(POWERS)}
    run = assert_rewrites(FoldSsmKernel(), written(forward), (inputs(70),), before={}, after=after, **free)
    assert len(run.records[0].applied) == len(POWERS)


def test_a_stored_kernel_that_is_cut_to_a_free_length() -> None:
    def forward(m: Written, u: Tensor) -> Tensor:
        length = u.shape[-1]
        return fft(u, m.K[:, :length], 2 * length)[..., :length]

    free = {"x": {0: "batch", 2: "length"}}
    run = assert_folds(written(forward, taps=100), inputs(12), dynamic=free, dims={"length": (1, 90)})
    assert (CHANNELS, 1, 90) in {t.shape for t in run.program.tensors.values()}


def test_layers_in_a_row_are_all_folded() -> None:
    model = nn.Sequential(layer(seed=1), nn.GELU(), layer(seed=2)).eval()
    run = run_passes(capture(model, (inputs(20),)), [FoldSsmKernel()])
    assert len(run.records[0].applied) == 2


def test_the_preset_folds_it_before_constants_are() -> None:
    run = Pipeline("exact").run(capture(layer(), (inputs(20),)), verify="off")
    applied = {record.name: len(record.applied) for record in run.records if record.applied}
    assert applied.get("fold-ssm-kernel") == 1 and "fold-constants" not in applied


def test_a_long_kernel_that_is_no_sum_of_powers_is_one_convolution_where_that_is_allowed() -> None:
    def forward(m: Written, u: Tensor) -> Tensor:
        kernel = m.K * torch.exp(-torch.arange(1100) / 50)
        return fft(u, kernel, 2200)[..., :1100]

    model, u = written(forward, taps=1100), normal(1, CHANNELS, 1100)
    assert_rewrites(FoldSsmKernel(max_taps=1100), model, (u,), before={}, after=CONV)
