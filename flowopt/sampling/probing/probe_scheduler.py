"""The table of a scheduler object, read off by running it."""

import sys
from collections.abc import Sequence

import numpy
import torch
from numpy.typing import NDArray

from flowopt.errors import UserError
from flowopt.sampling.probing.linearity import Weights, difference, require_linear
from flowopt.sampling.probing.run import Run, run
from flowopt.sampling.probing.schedule import Begun, begun
from flowopt.sampling.spec import SamplerSpec, Table

_DOUBLE = float(numpy.finfo(numpy.float64).eps)
_SINGLE = float(numpy.finfo(numpy.float32).eps)
# Sums of a hundred terms in float64 stay below; one rounding to float32 does not.
_DOUBLE_ERROR = 1e-12
# A library's own rounding above this part of the sample is worth a note.
_NOTED = 1e-6


def probe_scheduler(
    scheduler: object,
    steps: int | None = None,
    *,
    sigmas: Sequence[float] | None = None,
    timesteps: Sequence[float] | None = None,
    mu: float | None = None,
    time_scale: float = 1.0,
    **options: object,
) -> SamplerSpec:
    """Which numbers a scheduler of diffusers, or one with the same methods, multiplies with what.

    The scheduler's own ``set_timesteps``, ``scale_model_input`` and ``step`` run on basis vectors: one for the initial
    noise, one for the network's output at each of its timesteps, one for each time it draws noise. Nothing of the
    library is implemented again. A copy runs; the scheduler of the caller, the generators of random numbers and the
    functions of torch stay as they are. Samples are kept in float64 where the scheduler would round them to float32.

    The initial noise of the table has variance 1: the scheduler's ``init_noise_sigma`` is part of the table. Noise
    that the scheduler draws becomes inputs in the order of its draws, without those that it multiplies by 0.

    Args:
        scheduler: set up as the pipeline has it. It begins anew even when it has stepped before.
        steps: as in the pipeline; without it, ``sigmas`` or ``timesteps``, the schedule that the scheduler has.
        sigmas: instead of a number of steps, as some pipelines give them.
        timesteps: likewise.
        mu: the shift for the image's size, where the scheduler has ``use_dynamic_shifting``.
        time_scale: the network is told so many times the scheduler's timestep: 0.001 for FLUX, whose pipeline divides
            by 1000.
        options: further arguments of the scheduler's ``set_timesteps`` and ``step``, such as ``eta=1.0``.

    Raises:
        UserError: not a scheduler; no steps; missing or unknown arguments; a schedule that it has begun already; steps
            that are not linear (clipping, thresholding, a learned variance); noise that is not normal or comes from a
            Brownian tree.

    Source: Shaul et al., "Bespoke Non-Stationary Solvers for Fast Sampling of Diffusion and Flow Models", section 3.
    """
    name = type(scheduler).__name__
    _require_independent_noise(scheduler)
    named = {"sigmas": sigmas, "timesteps": timesteps, "mu": mu}
    given = {key: value for key, value in named.items() if value is not None}
    ready = begun(scheduler, steps, {**given, **options})
    times = tuple((float(t) * time_scale,) for t in ready.scheduler.timesteps)
    if not times:
        raise UserError(f"{name} has no timesteps for steps={steps}", hint="ask for 1 step or more")
    weights, tried, table = _read(ready)
    used = numpy.any(table[:, 1 + len(times) :] != 0, axis=0).astype(bool)
    kept = numpy.concatenate([numpy.ones(1 + len(times), dtype=bool), used])
    # Numbers that are not finite are what the sampler's own check reports.
    error = difference(tried, table, weights) if numpy.isfinite(table).all() else 0.0
    require_linear(scheduler, error)
    is_double = tried.rows[-1].dtype == torch.float64 and error < _DOUBLE_ERROR
    spec = SamplerSpec(
        name, times, table[:, kept].copy(), int(used.sum()), relative_precision=_DOUBLE if is_double else _SINGLE
    )
    return spec.with_notes(*_notes(ready, table, used))


def _require_independent_noise(scheduler: object) -> None:
    module = sys.modules.get(type(scheduler).__module__)
    if hasattr(module, "BrownianTreeNoiseSampler"):
        raise UserError(
            f"{type(scheduler).__name__} takes its noise from a Brownian tree of torchsde",
            why="those draws depend on each other, and cannot be given as inputs one by one",
            hint="DPMSolverMultistepScheduler with algorithm_type='sde-dpmsolver++' draws independent noise",
        )


def _read(ready: Begun) -> tuple[Weights, Run, Table]:
    """The table with all draws, and a run on random tensors to hold it against; in float64 where that works."""
    try:
        return _read_as(ready, torch.float64)
    except UserError as error:
        # A product of a matrix in float32 with the sample has no result in float64.
        if not isinstance(error.__cause__, RuntimeError):
            raise
    return _read_as(ready, torch.float32)


def _read_as(ready: Begun, dtype: torch.dtype) -> tuple[Weights, Run, Table]:
    weights, is_double = Weights(dtype), dtype == torch.float64
    # First, because it also tells how many columns of noise there are.
    tried = run(ready, weights.get(0, 0), weights.kind(1), weights.kind(2), keeps_double=is_double)
    outputs = len(tried.rows) - 1
    size = 1 + outputs + tried.draws
    # As a batch: entry c of a tensor is its part of column c.
    units = torch.eye(size, dtype=dtype).reshape(size, size, 1, 1, 1)
    probed = run(
        ready, units[0], lambda j: units[1 + j], lambda k: units[1 + outputs + k].clone(), keeps_double=is_double
    )
    return weights, tried, numpy.stack([row.double().flatten().numpy() for row in probed.rows])


def _notes(ready: Begun, table: Table, used: NDArray[numpy.bool_]) -> list[str]:
    notes = []
    if not table[-1].any():
        notes.append("the scheduler itself returns exactly 0 for this schedule")
    elif not table[-1, 1 : 1 + len(table) - 1].any():
        notes.append("the scheduler itself makes no use of the network for this schedule")
    if not used.all():
        unused = ", ".join(str(k) for k in numpy.flatnonzero(~used))
        notes.append(f"of the scheduler's {len(used)} draws, those without effect are no inputs: {unused}")
    single = Weights(torch.float32, varied=False)
    rounded = run(ready, single.get(0, 0), single.kind(1), single.kind(2), keeps_double=False)
    exact = numpy.tensordot(table[-1], single.columns(len(rounded.rows) - 1, rounded.draws), 1)
    error = float(numpy.abs(rounded.rows[-1].double().numpy() - exact).max() / (numpy.abs(exact).max() or 1.0))
    if error > _NOTED:
        notes.append(f"in float32 the scheduler's own steps round the sample by {error:.1e} of it; the table does not")
    return notes
