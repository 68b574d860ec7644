"""Fold the kernel of a state space layer (S4D), and run its convolution without transforms and complex numbers.

    irfft(rfft(u, n) rfft(K, n), n)[:L] + D u  =  conv1d(pad(u), flip(K + [D, 0, ..]))     depthwise, causal
                                               =  u T + s G in chunks, s = p^C s + u B     where K_l = Re sum G p^l

K is computed from stored tensors alone: once, in float64. D goes into its first tap.

A kernel that is a sum of powers, as that of any diagonal state space, needs no more than C taps: ``chunked`` multiplies
chunks of C = 64 steps with matrices, and carries the rest in a state of real numbers from chunk to chunk, by doubling
distances. On ONNX Runtime (one CPU core, 64 channels of 32 pairs of states, batch 1, milliseconds):

    L       conv    DFT     chunked                       DFT: what the exporter makes of the transforms, where it
    64      0.09    0.33    0.10                          can; where K takes more than a megabyte or L is free, it has
    256     1.2     1.4     0.23                          no form of them, and TVM has none at all.
    1024    19      6.3     0.76
    4096    315     37      3.7

So ``form`` auto is ``chunked`` for sums of powers above 64 steps, and ``conv`` for all others. What is free of the
transforms holds for a free length up to its largest, since a kernel of powers begins as any longer one does. A kernel
counts as one only after the graph's own was evaluated in float64 as long as it can be (where that takes more than a
quarter of a gigabyte, at 4096 steps or more): one that is cut off, repeated or clamped differs far away alone.

Numerical effect: EXACT. Kernel, poles and tables are computed in float64 and rounded once, where the model computes the
phase of every tap in its own dtype: that is the larger error by far. A NaN or an infinity spreads over all steps of its
channel, as the transforms spread it: x + 0 sum(x).

Refuses when:
    not-constant            both spectra depend on inputs
    dynamic-shape           the length is free, and the kernel depends on it otherwise than by its number of taps (DSS),
                            or the length has no largest, or ``form`` is fft
    wraps-around            the transform is shorter than steps and taps together: kernels in both directions, or a
                            circular one
    multiple-readers        a spectrum or the uncut result is read elsewhere too
    graph-output            the uncut result is an output of the model
    axis-mismatch           not the second or third axis of three is transformed, or there is no kernel for each channel
    no-gain                 the kernel is no sum of powers, and has more than ``max_taps`` taps, or ``form`` is chunked
    grows-too-much          what is stored takes more than ``max_growth``
    not-finite              a tap or a table would overflow
    unsupported-spelling    no product of two spectra of real values; lengths that differ, or norms that scale; another
                            cut than of the first values; half precision
    missing-metadata        a node without recorded shape

Attributes of the matched operators:
    fft_rfft, fft_irfft: n, dim used, norm checked to scale by 1/n in all. _fft_r2c, _fft_c2r: dim, last_dim_size used;
    normalization likewise; onesided checked. constant_pad_nd, pad: zeros at the end are dropped; else they are input.
    mul: operands used. slice: dim, start, step checked; end used. add: operands used, alpha checked to be missing.
    arange: start, step checked; end, dtype irrelevant to the power that a position stands for. What computes the
    kernel is evaluated, not matched.

Source: Gu et al., "On the Parameterization and Initialization of Diagonal State Space Models", section 3; the chunks
are those of Dao and Gu, "Transformers are SSMs", section 6, without gates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, fx

from flowopt.analysis.exponential_kernel import ExponentialKernel, diagonal_system, exponential_kernel
from flowopt.errors import UserError
from flowopt.ir.constants import is_parameter_only
from flowopt.ir.float64 import raised_tensor
from flowopt.ir.metadata import sizes_as_text, symbol_of
from flowopt.ops.ssm.chunk_tables import ChunkTables, chunk_tables
from flowopt.ops.ssm.diagonal_system import DiagonalSystem, kernel_of
from flowopt.passes.fold._causal_forms import chunked, convolved, spread, transformed
from flowopt.passes.fold._fft_convolution import (
    INVERSES,
    FftConvolution,
    fft_convolution,
    per_channel,
    size_of,
    takes_first,
)
from flowopt.program.program import Program
from flowopt.rewrite import Edit, Exactness, RewritePass, Site

_aten = torch.ops.aten
Form = Literal["auto", "chunked", "conv", "fft"]
_FORMS = get_args(Form)
# Up to here one convolution takes as long as chunks, and is one operator.
_SHORT = 64


@dataclass(frozen=True, slots=True)
class Plan:
    """Replace a convolution.

    Attributes:
        convolution: as it is written.
        stored: the kernel where it is stored, or computed for one length; None: for free ones.
        powers: of which the kernel is a sum; None where it is none, or that is not needed.
        form: one of ``Form`` but auto.
        longest: sequence, which has no more taps.
    """

    convolution: FftConvolution
    stored: fx.Node | None
    powers: ExponentialKernel | None
    form: Form
    longest: int


class FoldSsmKernel(RewritePass[Plan]):
    """Fold the kernel of a state space layer (S4D), and run its convolution without transforms.

    Attributes:
        form: ``chunked``, ``conv``, ``fft``, which keeps the transforms and stores the kernel's, or ``auto``.
        chunk: steps in a chunk.
        max_taps: of a convolution.
        max_growth: bytes that one layer's taps or tables may take.
    """

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = INVERSES
    form: Form = "auto"
    chunk: int = 64
    max_taps: int = 1024
    max_growth: int = 67108864

    def __post_init__(self) -> None:
        if self.form not in _FORMS:
            raise UserError(f"fold-ssm-kernel:form={self.form!r} is none of {', '.join(_FORMS)}")
        if self.chunk < 1:
            raise UserError(f"fold-ssm-kernel:chunk={self.chunk} must be positive")

    def check(self, site: Site) -> Plan:
        found = fft_convolution(site)
        stored = _stored(found)
        taps = None if stored is None else site.recorded(stored).shape[found.kernel_axis]
        assert taps is None or isinstance(taps, int)  # a stored tensor's sizes are numbers
        longest = _longest(site, found, taps)
        powers = None
        if stored is None or self.form == "chunked" or (self.form == "auto" and longest > _SHORT):
            powers = _powers(site, found, longest)
        site.require(
            stored is not None or powers is not None,
            "dynamic-shape",
            f"{found.kernel.name} depends on the length otherwise than by its number of taps",
            found.kernel,
        )
        plan = Plan(found, stored, powers, self._form(powers, longest), longest)
        self._require_gain(site, plan)
        self._require_fit(site, plan)
        return plan

    def state_space(self, site: Site) -> tuple[FftConvolution, ExponentialKernel]:
        """A convolution with a sum of powers of any length, which needs no largest one; options have no part in it.

        Raises:
            RefusedError: it is none.
        """
        found = fft_convolution(site)
        powers = _powers(site, found, _largest(site, found))
        if powers is None:
            site.refuse("dynamic-shape", f"{found.kernel.name} is no sum of powers as long as its input", found.kernel)
        return found, powers

    def rewrite(self, edit: Edit, plan: Plan) -> str:
        found = plan.convolution
        name = f"{found.kernel.name}.folded"
        with edit.before(found.result):
            if plan.form == "fft":
                y = transformed(edit, found, _taps(edit.program, plan), name)
            else:
                x = found.x if found.axis == 2 else edit.call(_aten.transpose.int, found.x, 1, 2)
                x = spread(edit, x, name)
                if plan.form == "conv":
                    y = convolved(edit, x, _taps(edit.program, plan), name)
                else:
                    y = chunked(edit, x, self._tables(edit.program, plan), name)
                y = y if found.axis == 2 else edit.call(_aten.transpose.int, y, 1, 2)
            is_whole = str(found.cut.meta["val"].shape) == str(y.meta["val"].shape)
            y = y if is_whole else edit.call(_aten.slice.Tensor, y, found.axis, *found.cut.args[2:])
        edit.replace(found.result, y)
        return f"{found.kernel.name}{'' if found.skip is None else f' and {found.skip.name}'} -> {plan.form}"

    def _form(self, powers: ExponentialKernel | None, longest: int) -> Form:
        if self.form != "auto":
            return self.form
        return "chunked" if powers is not None and longest > _SHORT else "conv"

    def _tables(self, program: Program, plan: Plan) -> ChunkTables:
        count = -(-plan.longest // self.chunk)
        return chunk_tables(_system(program, plan), self.chunk, (count - 1).bit_length(), _skip(program, plan))

    def _require_gain(self, site: Site, plan: Plan) -> None:
        site.require(
            plan.form != "chunked" or plan.powers is not None,
            "no-gain",
            f"{plan.convolution.kernel.name} is no sum of powers as long as its input: chunks have no state to carry",
        )
        site.require(
            plan.form != "conv" or plan.longest <= self.max_taps,
            "no-gain",
            f"a convolution would have {plan.longest} taps; max_taps is {self.max_taps}",
        )
        is_free = not isinstance(size_of(plan.convolution.length), int)
        site.require(plan.form != "fft" or not is_free, "dynamic-shape", "a spectrum is stored for one length")

    def _require_fit(self, site: Site, plan: Plan) -> None:
        if plan.form == "chunked":
            tables = self._tables(site.program, plan)
            made = [tables.enter, tables.leave, *(part for pair in tables.decays for part in pair)]
        else:
            made = [_taps(site.program, plan)]
        dtype = site.recorded(plan.convolution.x).dtype
        limit = torch.finfo(dtype).max
        is_finite = all(bool((t.abs() <= limit).all()) for t in made)
        site.require(is_finite, "not-finite", f"a tap of {plan.convolution.kernel.name} would exceed {limit:.3g}")
        size = sum(t.numel() for t in made) * dtype.itemsize
        site.require(
            size <= self.max_growth,
            "grows-too-much",
            f"{size:,} bytes would be stored; max_growth is {self.max_growth:,}",
        )


def _stored(found: FftConvolution) -> fx.Node | None:
    """The kernel itself where no size is free in it, or the stored tensor whose first taps it is."""
    kernel = found.kernel
    if is_parameter_only(kernel):
        return kernel
    source = kernel.args[0] if takes_first(kernel, found.kernel_axis, len(sizes_as_text(kernel))) else None
    return source if isinstance(source, fx.Node) and is_parameter_only(source) else None


def _longest(site: Site, found: FftConvolution, taps: int | None) -> int:
    """Steps that a sequence can have, or taps where these are fewer."""
    steps = site.recorded(found.x).shape[found.axis]
    if isinstance(steps, int):
        return steps if taps is None else min(steps, taps)
    bounds = [bound for bound in (_largest(site, found), taps) if bound is not None]
    site.require(
        bool(bounds), "dynamic-shape", f"{found.x.name} may have any number of steps ({steps}): give a largest"
    )
    return min(bounds)


def _largest(site: Site, found: FftConvolution) -> int | None:
    """Steps that a sequence of a free length can have; None: any number."""
    symbol = symbol_of(site.recorded(found.x).shape[found.axis])
    return next((dim.maximum for dim in site.program.dims if dim.symbol == symbol), None)


def _powers(site: Site, found: FftConvolution, longest: int | None) -> ExponentialKernel | None:
    """Of a kernel with a tap for every step, of which there are no more than ``longest``."""
    steps, taps = site.recorded(found.x).shape[found.axis], site.recorded(found.kernel).shape[found.kernel_axis]
    is_whole = str(steps) == str(taps) or (isinstance(steps, int) and isinstance(taps, int) and taps > steps)
    if not is_whole:
        return None
    return exponential_kernel(found.kernel, found.kernel_axis, _reader(site.program), longest=longest)


def _reader(program: Program) -> Callable[[str], Tensor]:
    return lambda name: raised_tensor(program.tensors[name])


def _system(program: Program, plan: Plan) -> DiagonalSystem:
    assert plan.powers is not None  # or else another form is planned
    system = diagonal_system(plan.powers, _reader(program))
    assert system is not None  # check has found it
    return system


def _skip(program: Program, plan: Plan) -> Tensor | None:
    found = plan.convolution
    if found.skip is None:
        return None
    return per_channel(program.constant(found.skip), found.x.meta["val"].shape[3 - found.axis])


def _taps(program: Program, plan: Plan) -> Tensor:
    """(channels, longest) in float64, with the skip in the first."""
    if plan.stored is None:
        taps = kernel_of(_system(program, plan), plan.longest)
    else:
        whole = program.constant(plan.stored).movedim(plan.convolution.kernel_axis, -1)
        taps = whole.reshape(-1, whole.shape[-1])[:, : plan.longest].clone()
    skip = _skip(program, plan)
    if skip is not None:
        taps[:, 0] += skip
    return taps
