"""Where ``fold-ssm-kernel`` refuses, and why."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowopt.analysis import exponential_kernel
from flowopt.errors import UserError
from flowopt.passes.fold.fold_ssm_kernel import FoldSsmKernel
from flowopt.pipeline.text import parse_pipeline
from flowopt.program.capture import capture
from flowopt.testing import assert_refuses
from tests.passes.fold.state_spaces import CHANNELS, fft, inputs, layer, written
from tests.passes.programs import Written, decomposed, normal

FREE = {"x": {2: "length"}}
Forward = Callable[[Any, Tensor], object]


def refuses(code: str, forward: Forward, *, length: int = 12, u: Tensor | None = None, **options: Any) -> None:
    free = options.pop("dims", None)
    model = written(forward, taps=options.pop("taps", 12))
    given = inputs(length) if u is None else u
    program = capture(model, (given,), dynamic=None if free is None else FREE, dims=free)
    assert_refuses(FoldSsmKernel(**options), program, code=code)


def test_refuses_two_spectra_of_inputs() -> None:
    refuses("not-constant", lambda m, u: fft(u, u.sin(), 24)[..., :12])


def test_refuses_a_kernel_that_a_layer_makes_of_the_input() -> None:
    refuses("not-constant", lambda m, u: fft(u, m.K * u.mean(0), 24)[..., :12])


def test_refuses_two_stored_spectra() -> None:
    refuses("not-constant", lambda m, u: u + fft(m.K, m.K.sin(), 24)[..., :12])


def test_refuses_dss_of_a_free_length() -> None:
    dims = {"length": (1, 100)}
    program = capture(layer(discretization="dss"), (inputs(12),), dynamic={"u": {2: "length"}}, dims=dims)
    assert_refuses(FoldSsmKernel(), program, code="dynamic-shape")


def test_refuses_a_kernel_of_a_free_length_that_is_no_sum_of_powers() -> None:
    def forward(m: Any, u: Tensor) -> Tensor:
        length = u.shape[-1]
        kernel = (m.D[:, None] * torch.arange(length)).sin().softmax(-1)
        return fft(u, kernel, 2 * length)[..., :length]

    refuses("dynamic-shape", forward, dims={"length": (2, 100)})


@pytest.mark.parametrize("change", ["by-length", "by-sum", "by-flip", "by-window"])
def test_refuses_powers_that_are_changed_by_the_length(change: str) -> None:
    def forward(m: Any, u: Tensor) -> Tensor:
        length = u.shape[-1]
        turned, gains = torch.view_as_complex(m.p), torch.view_as_complex(m.c)
        powers = (turned[..., None] * torch.arange(length)).exp()
        if change == "by-sum":
            powers = powers / powers.sum(-1, keepdim=True)
        kernel = torch.einsum("hn,hnl->hl", gains, powers).real
        if change == "by-length":
            kernel = kernel / length
        if change == "by-flip":
            kernel = kernel.flip(-1)
        if change == "by-window":
            kernel = kernel / (1 + torch.arange(length))
        return fft(u, kernel, 2 * length)[..., :length]

    refuses("dynamic-shape", forward, dims={"length": (2, 100)})


CHANGED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cut": lambda K, at: K * (at < 64),
    "cut-late": lambda K, at: K * (at < 170),
    "dropped": lambda K, at: torch.where(K.abs() > 1e-3, K, 0.0),
    "clamped": lambda K, at: K.clamp(-50, 50),
}  # fmt: skip
COUNTED: dict[str, Callable[[Tensor], Tensor]] = {
    "wrapped": lambda at: at % 128,
    "stopped": lambda at: at.clamp(max=150),
    "stopped-late": lambda at: at.clamp(max=197),
}


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("change", [*CHANGED, *COUNTED])
def test_refuses_powers_that_are_changed_far_away(change: str, free: bool) -> None:
    def forward(m: Any, u: Tensor) -> Tensor:
        length = u.shape[-1]
        at = torch.arange(length)
        counted = COUNTED.get(change, lambda same: same)(at)
        powers = (torch.view_as_complex(m.p / 50)[..., None] * counted).exp()
        kernel = torch.einsum("hn,hnl->hl", torch.view_as_complex(m.c), powers).real
        kernel = CHANGED.get(change, lambda same, _: same)(kernel, at)
        return fft(u, kernel, 2 * length)[..., :length]

    if free:
        refuses("dynamic-shape", forward, u=inputs(200), dims={"length": (2, 200)})
    else:
        refuses("no-gain", forward, u=inputs(200), form="chunked")


def test_refuses_powers_that_are_cut_farther_away_than_they_are_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exponential_kernel, "_MOST_BYTES", 0)

    def forward(m: Any, u: Tensor, end: int) -> Tensor:
        length = u.shape[-1]
        at = torch.arange(length)
        powers = (torch.view_as_complex(m.p / 50)[..., None] * at).exp()
        kernel = torch.einsum("hn,hnl->hl", torch.view_as_complex(m.c), powers).real * (at < end)
        return fft(u, kernel, 2 * length)[..., :length]

    dims = {"length": (2, 6000)}
    refuses("dynamic-shape", lambda m, u: forward(m, u, 5000), dims=dims)
    refuses("dynamic-shape", lambda m, u: forward(m, u, 4000), dims=dims)


def test_refuses_a_length_without_a_largest() -> None:
    program = capture(layer(), (inputs(12),), dynamic={"u": {2: "length"}})
    assert_refuses(FoldSsmKernel(), program, code="dynamic-shape")


def test_refuses_to_store_a_spectrum_for_a_free_length() -> None:
    program = capture(layer(), (inputs(12),), dynamic={"u": {2: "length"}}, dims={"length": (1, 100)})
    assert_refuses(FoldSsmKernel(form="fft"), program, code="dynamic-shape")


def test_refuses_a_transform_of_which_a_free_length_may_be_too_long() -> None:
    dims = {"length": (1, 100)}
    refuses("dynamic-shape", lambda m, u: fft(u, m.K, 200)[..., : u.shape[-1]], dims=dims)


def test_refuses_a_transform_that_wraps_around() -> None:
    refuses("wraps-around", lambda m, u: [fft(u, m.K, length)[..., :12] for length in (12, 22)])


def test_refuses_kernels_in_both_directions() -> None:
    def forward(m: Any, u: Tensor) -> Tensor:
        pad = nn.functional.pad
        both = pad(m.K, (0, 12)) + pad(m.K.sin().flip(-1), (12, 0))
        return fft(u, both, 24)[..., :12]

    refuses("wraps-around", forward)


def test_refuses_a_spectrum_that_is_read_elsewhere() -> None:
    def forward(m: Any, u: Tensor) -> tuple[Tensor, Tensor]:
        spectrum = torch.fft.rfft(u, n=24)
        return torch.fft.irfft(spectrum * torch.fft.rfft(m.K, n=24), n=24)[..., :12], spectrum.abs()

    refuses("multiple-readers", forward)


def test_refuses_a_product_of_spectra_that_is_read_elsewhere() -> None:
    def forward(m: Any, u: Tensor) -> tuple[Tensor, Tensor]:
        product = torch.fft.rfft(u, n=24) * torch.fft.rfft(m.K, n=24)
        return torch.fft.irfft(product, n=24)[..., :12], product.abs()

    refuses("multiple-readers", forward)


def test_refuses_an_uncut_result_that_is_read_twice() -> None:
    def forward(m: Any, u: Tensor) -> tuple[Tensor, Tensor]:
        whole = fft(u, m.K, 24)
        return whole[..., :12], whole.sin()

    refuses("multiple-readers", forward)


def test_refuses_an_uncut_result_that_is_an_output() -> None:
    refuses("graph-output", lambda m, u: fft(u, m.K, 24))


AXES: dict[str, Forward] = {
    "the-batch": lambda m, u: fft(u, m.K[:3].mT.reshape(9, 4, 1), 24, dim=-3)[:2],
    "no-batch": lambda m, u: fft(u[0], m.K, 24)[..., :12],
    "one-kernel-for-all": lambda m, u: fft(u, m.K[:1], 24)[..., :12],
    "a-kernel-for-each-sample": lambda m, u: fft(u, m.K.view(2, 2, 12)[:, :1], 24)[..., :12],
    "more-channels-than-the-input": lambda m, u: fft(u[:, :1], m.K, 24)[..., :12],
}  # fmt: skip


def test_refuses_other_axes() -> None:
    refuses("axis-mismatch", lambda m, u: [forward(m, u) for forward in AXES.values()])


SPELLINGS: dict[str, Forward] = {
    "three-spectra": lambda m, u: (
        torch.fft.irfft(torch.fft.rfft(u, 24) * torch.fft.rfft(m.K, 24) * torch.fft.rfft(m.K, 24), 24)[..., :12]
    ),
    "a-squared-spectrum": lambda m, u: torch.fft.irfft(torch.fft.rfft(u, 24).square(), 24)[..., :12],
    "a-sum": lambda m, u: torch.fft.irfft(torch.fft.rfft(u, 24) + torch.fft.rfft(m.K, 24), 24)[..., :12],
    "a-stored-spectrum": lambda m, u: (
        torch.fft.irfft(torch.fft.rfft(u, 24) * torch.complex(m.K, m.K)[..., :1].expand(-1, 13), 24)[..., :12]
    ),
    "a-scale": lambda m, u: (
        torch.fft.irfft(torch.fft.rfft(u, 24) * torch.fft.rfft(m.K, 24), 24, norm="forward")[..., :12]
    ),
    "other-lengths": lambda m, u: torch.fft.irfft(torch.fft.rfft(u, 24) * torch.fft.rfft(m.K, 25), 24)[..., :12],
    "a-resampling": lambda m, u: torch.fft.irfft(torch.fft.rfft(u, 24) * torch.fft.rfft(m.K, 24), 25)[..., :12],
    "a-middle": lambda m, u: fft(u, m.K, 24)[..., 6:18],
    "every-second": lambda m, u: fft(u, m.K, 24)[..., :12:2],
    "a-tail": lambda m, u: fft(u, m.K, 24)[..., :20],
    "another-axis": lambda m, u: fft(u, m.K, 24)[:, :2],
    "no-cut": lambda m, u: fft(u, m.K, 24).sin(),
}  # fmt: skip


def test_refuses_other_spellings() -> None:
    refuses("unsupported-spelling", lambda m, u: [forward(m, u) for forward in SPELLINGS.values()])


@pytest.mark.parametrize("kind", ["both-halves", "two-axes"])
def test_refuses_decomposed_transforms_of_other_kinds(kind: str) -> None:
    def forward(m: Written, u: Tensor) -> Tensor:
        padded = nn.functional.pad(u, (0, 12))
        if kind == "two-axes":
            made = torch.fft.irfft2(torch.fft.rfft2(padded) * torch.fft.rfft2(nn.functional.pad(m.K, (0, 12))))
        else:
            spectrum = torch.ops.aten._fft_r2c(padded, [2], 0, False)
            made = torch.ops.aten._fft_c2r(spectrum * torch.fft.fft(m.K, 24), [2], 2, 46)[..., :24]
        return made[..., :12]

    assert_refuses(FoldSsmKernel(), decomposed(written(forward), inputs(12)), code="unsupported-spelling")


def test_refuses_half_precision() -> None:
    def forward(m: Written, u: Tensor) -> Tensor:
        return fft(u, m.K, 24)[..., :12]

    program = capture(written(forward), (inputs(12),))
    for node in program.graph.nodes:
        if node.op == "placeholder":
            node.meta["val"] = node.meta["val"].half()
    assert_refuses(FoldSsmKernel(), program, code="unsupported-spelling")


def test_refuses_a_long_kernel_that_is_no_sum_of_powers() -> None:
    refuses("no-gain", lambda m, u: fft(u, m.K, 60)[..., :30], length=30, taps=30, max_taps=29)


def test_refuses_chunks_of_a_kernel_that_is_no_sum_of_powers() -> None:
    refuses("no-gain", lambda m, u: fft(u, m.K, 24)[..., :12], form="chunked")


def test_refuses_chunks_of_fewer_powers_than_steps() -> None:
    def forward(m: Any, u: Tensor) -> Tensor:
        powers = (torch.view_as_complex(m.p)[..., None] * torch.arange(7)).exp()
        return fft(u, torch.einsum("hn,hnl->hl", torch.view_as_complex(m.c), powers).real, 24)[..., :12]

    refuses("no-gain", forward, form="chunked")


def test_refuses_what_takes_more_than_is_allowed() -> None:
    refuses("grows-too-much", lambda m, u: fft(u, m.K, 24)[..., :12], max_growth=CHANNELS * 12 * 4 - 1)


def test_refuses_a_tap_that_would_overflow() -> None:
    def forward(m: Any, u: Tensor) -> Tensor:
        return fft(u, (m.K.abs() + 100).exp(), 24)[..., :12]

    refuses("not-finite", forward)


def test_refuses_a_node_without_a_recorded_shape() -> None:
    program = capture(layer(), (inputs(12),))
    for node in program.graph.nodes:
        if node.name == "u":
            del node.meta["val"]
    assert_refuses(FoldSsmKernel(), program, code="missing-metadata")


def test_leaves_a_graph_without_transforms_alone() -> None:
    program = capture(nn.Linear(4, 4).eval(), (normal(2, 4),))
    assert not FoldSsmKernel().sites(program)


@pytest.mark.parametrize("text", ["fold-ssm-kernel:form=recurrent", "fold-ssm-kernel:chunk=0"])
def test_options_without_a_meaning_are_told(text: str) -> None:
    with pytest.raises(UserError, match="is none of auto, chunked, conv, fft|must be positive"):
        parse_pipeline(text)
