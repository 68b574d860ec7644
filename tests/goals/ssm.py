"""The row of state space layers: every form of S4D is the same function, and so is the file that it is lowered to."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import flowopt
from flowopt.errors import FlowoptError
from flowopt.ops.ssm import S4D, DiagonalSystem, Discretization, chunk_tables, kernel_of
from tests.goals.row import Measured, Row, counted, problem_of
from tests.ops.ssm.random_s4d import random_s4d

CHANNELS, STATES = 5, 16
LENGTHS = (1, 2, 63, 1000)
DISCRETIZATIONS: tuple[Discretization, ...] = ("zoh", "bilinear")
SEEDS = range(12)
AGREEMENT = 1e-10
CHUNKS = (1, 7, 64)
# Of the largest output, in float32 against float64: the kernel is rounded once, and sums of a thousand products.
IN_FLOAT32 = 2e-6
# A pole that is rounded once is multiplied with itself a thousand times.
OF_STEPS = 1e-5


def inputs(length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, CHANNELS, length, generator=generator, dtype=torch.float64)


def require_same(what: str, made: Tensor, wanted: Tensor, tolerance: float = AGREEMENT) -> None:
    """Equal to a part of the largest number of each sample's channel."""
    scale = wanted.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    error = float(((made.double() - wanted) / scale).abs().max())
    assert error <= tolerance, f"{what} differs by {error:.1e}"


def streamed(system: DiagonalSystem, skip: Tensor, u: Tensor, chunk: int) -> Tensor:
    """The outputs of a sequence that comes in chunks, the last one shorter, with the state carried between them."""
    states = system.poles.shape[1]
    carried, outputs = u.new_zeros(*u.shape[:2], 1, 2 * states), []
    for part in u.split(chunk, -1):
        length = part.shape[-1]
        tables = chunk_tables(system, length, 1, skip)
        mixed = part[:, :, None] @ tables.enter
        outputs.append((mixed[..., :length] + carried @ tables.leave).squeeze(2))
        (decay_re, decay_im), re, im = tables.decays[0], carried[..., :states], carried[..., states:]
        turned = torch.cat([decay_re * re - decay_im * im, decay_re * im + decay_im * re], -1)
        carried = mixed[..., length:] + turned
    return torch.cat(outputs, -1)


@torch.no_grad()
def check_forms(layer: S4D, u: Tensor) -> None:
    """Transform, convolution, steps and chunks with a carried state agree, and so do the kernels' beginnings."""
    wanted = layer(u)
    length = u.shape[-1]
    layer.precompute(length)
    layer.form = "convolution"
    require_same("the convolution", layer(u), wanted)
    if layer.discretization == "dss":
        return
    layer.form = "recurrent"
    require_same("the recurrence", layer(u), wanted)
    system = layer.system()
    for chunk in CHUNKS:
        require_same(f"a stream of chunks of {chunk}", streamed(system, layer.D, u, chunk), wanted)
    shorter = length // 2 + 1
    assert torch.equal(kernel_of(system, length)[:, :shorter], kernel_of(system, shorter)), "the kernel has no prefix"


def _forms() -> Iterator[tuple[str, str]]:
    for length in LENGTHS:
        # Steps are slow: of long sequences, fewer.
        for seed in SEEDS if length < LENGTHS[-1] else SEEDS[:2]:
            for kind in (*DISCRETIZATIONS, "dss"):
                layer = random_s4d(CHANNELS, STATES, discretization=kind, seed=seed)
                check = partial(check_forms, layer, inputs(length, seed))
                yield f"{kind}, {length} steps, seed {seed}", problem_of(check)


def check_artifact(target: str, length: int, *, is_free: bool) -> None:
    """The lowered layer against the float64 transform, at its length, or at several where that is free."""
    exact = random_s4d(CHANNELS, STATES, seed=length)
    layer = random_s4d(CHANNELS, STATES, seed=length).float()
    # What float32 parameters say, in float64.
    exact.load_state_dict(layer.state_dict())
    free = {"u": {0: "batch", 2: "length"}} if is_free else None
    program = flowopt.capture(
        layer, (inputs(length).float(),), dynamic=free, dims={"length": (1, length)} if free else None
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = flowopt.optimize(
                program, target=target, folder=Path(folder) / "out", require={"fold-ssm-kernel": 1}
            )
            assert result.artifact is not None, f"different: {result.verdict.findings[:1]}"
            for steps in (1, 2, 63, length) if is_free else (length,):
                u = inputs(steps).float()
                made = result.artifact.run(u)
                assert isinstance(made, Tensor)
                with torch.no_grad():
                    require_same(f"{steps} steps on {target}", made, exact(u.double()), IN_FLOAT32)
    except FlowoptError as error:
        raise AssertionError(f"{target}: {error.message}") from error


def check_step(target: str, length: int) -> None:
    """The lowered step, token by token with the states carried, against the float64 transform of all tokens."""
    exact = random_s4d(CHANNELS, STATES, seed=length)
    layer = random_s4d(CHANNELS, STATES, seed=length).float()
    exact.load_state_dict(layer.state_dict())
    u = inputs(length).float()
    free = {"u": {0: "batch", 2: "length"}}
    program = flowopt.capture(layer, (u,), dynamic=free, dims={"length": (1, length)})
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = flowopt.optimize(program, target=target, folder=Path(folder) / "out", form="recurrent")
            assert result.artifact is not None, f"different: {result.verdict.findings[:1]}"
            made = next(iter(result.artifact.stream(batch=len(u)).run(u=u).values()))
            with torch.no_grad():
                require_same(f"the step on {target}", made, exact(u.double()), OF_STEPS)
    except FlowoptError as error:
        raise AssertionError(f"{target}: {error.message}") from error


def _artifacts() -> Iterator[tuple[str, str]]:
    for target in ("cpu", "tvm"):
        for length in LENGTHS:
            yield f"{target}, {length} steps", problem_of(partial(check_artifact, target, length, is_free=False))
        yield f"{target}, steps with states", problem_of(partial(check_step, target, LENGTHS[-1]))
        yield f"{target}, up to 1000 steps", problem_of(partial(check_artifact, target, LENGTHS[-1], is_free=True))


def _fold() -> Measured:
    outcomes = dict(_forms())
    forms = len(outcomes)
    outcomes |= dict(_artifacts())
    good, short = counted(outcomes)
    value = f"{good} of {len(outcomes)}: {forms} layers, {len(outcomes) - forms} files"
    return Measured(value, good == len(outcomes), short)


ROWS = (
    Row(
        "ssm.fold",
        "S4D: FFT = convolution = recurrence at 1e-10; streaming = batch",
        _fold,
        is_long=True,
    ),
)
