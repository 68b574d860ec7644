"""Fold a network and a sampler into one program."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.ir.loop_spec import FORMS, Form, LoopSpec
from flowopt.nearest import nearest
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.program.sampler_program import SamplerProgram
from flowopt.sampling.ends import DRAWS, NOISE, UNCONDITIONAL, Epilogue, Prologue
from flowopt.sampling.guidance import ClassifierFree
from flowopt.sampling.named_module import Compute, NamedModule
from flowopt.sampling.network import network_of
from flowopt.sampling.realization import realize
from flowopt.sampling.roles import Roles, predicting, read_inputs, roles_of
from flowopt.sampling.spec import SamplerSpec
from flowopt.sampling.step import SCALE_INPUT, Step, coefficients, noise_names, state_names
from flowopt.sampling.time_tables import tabulate

_Axes = dict[int, str]
# A batch of one size is not free.
_LEAST_FREE = 2


def fold(
    program: Program,
    spec: SamplerSpec,
    *,
    guidance: ClassifierFree | None = None,
    form: Form = "auto",
    sample: str | None = None,
    times: Sequence[str] | None = None,
    prediction: str | None = None,
    output: Epilogue | None = None,
) -> SamplerProgram:
    """One program that takes noise and conditions and returns the sample.

    The network is traced once, whatever the number of steps. What it computes from the time alone becomes a table with
    one row per step, or a constant where there is one step. The state is float32, also of networks in 16 bits, whose
    inputs and outputs are cast. Noise is an input, and no random operator is inside:

        noise                  unit normal, of the sample's shape; scaled inside where the sampler starts at another
                               scale
        draws                  [K, *shape of the sample], unit normal, where the sampler draws noise on its way
        (conditions)           the network's other inputs, by their names
        unconditional_(name)   what stands for "no condition", with guidance and where no number stands for it
        guidance_scale         a number, where the guidance has no fixed scale

    Args:
        program: the network, one evaluation; never changed. The batch is free where it was captured so; with guidance
            it goes up to half of what the network takes.
        spec: the sampler.
        guidance: of a conditional network.
        form: how a lowering writes the loop down.
        sample: name of the input that is denoised, where it cannot be told.
        times: names of the time inputs, likewise.
        prediction: name of the output, where there are several.
        output: what happens to the sample in the end.

    Raises:
        UserError: roles that cannot be told, times that the network cannot take, guidance without a condition or
            with a number for none that its dtype does not have.
    """
    if form not in FORMS:
        raise UserError(f"no form {form!r} of a loop", hint=f"forms: {', '.join(FORMS)}")
    roles = roles_of(program, len(spec.times[0]), sample=sample, times=times, prediction=prediction)
    _require_names(roles, guidance)
    doubled = _doubled(program, roles, guidance)
    loop = realize(spec)
    program = predicting(program, roles.prediction)
    given = dict(zip(roles.times, zip(*spec.times, strict=True), strict=True))
    tables = tabulate(program, given, roles.sample)
    network = network_of(program, roles, tables)
    state_dtype = torch.float64 if network.dtype == torch.float64 else torch.float32
    scales = guidance.scales(spec.evaluations) if guidance is not None else None
    numbers = coefficients(loop, scales, state_dtype)
    rows, exact = {**numbers.tables, **tables.rows}, {**numbers.exact, **tables.exact}

    parts = _Parts(program, roles, state_dtype, is_guided=guidance is not None)
    states, noises = state_names(loop.rank), noise_names(loop)
    outer: dict[str, tuple[Tensor, _Axes]] = {NOISE: parts.sample()}
    if spec.draws:
        outer[DRAWS] = parts.several(spec.draws)
    for name in roles.conditions:
        outer[name] = parts.condition(name)
        if name in doubled and (guidance is None or name not in guidance.unconditional):
            outer[UNCONDITIONAL + name] = parts.condition(name)
    if guidance is not None and guidance.scale is None:
        outer[SCALE_INPUT] = (torch.tensor(2.0, dtype=state_dtype), {})

    inner = {name: parts.sample() for name in (*states, *noises)}
    constants = {name: table[0] for name, table in rows.items()} if spec.evaluations == 1 else {}
    inner |= {name: (table[0], {}) for name, table in rows.items() if name not in constants}
    inner |= {name: parts.condition(name, twice=name in doubled) for name in roles.conditions if name in network.names}
    if SCALE_INPUT in outer:
        inner[SCALE_INPUT] = outer[SCALE_INPUT]

    epilogue = parts.captured("epilogue", {states[0]: parts.sample()}, output or Epilogue())
    step = Step(network, loop, numbers, guidance, doubled)
    return SamplerProgram(
        prologue=parts.captured("prologue", outer, Prologue(loop, guidance, doubled)),
        step=parts.captured("step", inner, step, parts={"network": network.module}, tensors=constants),
        loop=LoopSpec(
            steps=spec.evaluations,
            state=states,
            tables={name: table for name, table in rows.items() if name not in constants},
            sequences=noises,
            exact_tables=exact,
            form=form,
        ),
        epilogue=dataclasses.replace(epilogue, single=True),
    )


def _require_names(roles: Roles, guidance: ClassifierFree | None) -> None:
    taken = {NOISE, DRAWS, SCALE_INPUT, *(UNCONDITIONAL + name for name in roles.conditions)}
    clashes = [n for n in roles.conditions if n in taken or n.startswith(("state_", "noise_", "carry_", "gain_"))]
    if clashes:
        raise UserError(
            f"the folded sampler has inputs and values of its own called {', '.join(clashes)}",
            hint="wrap the network in a module whose forward calls them otherwise",
        )
    unknown = sorted((guidance.unconditional.keys() if guidance is not None else set()) - set(roles.conditions))
    if unknown:
        raise UserError(
            f"guidance without {', '.join(unknown)}, but the network's conditions are {list(roles.conditions)}",
            hint=nearest(unknown[0], roles.conditions, otherwise="its conditions:")
            if roles.conditions
            else "leave guidance out for a network without conditions",
        )


def _doubled(program: Program, roles: Roles, guidance: ClassifierFree | None) -> tuple[str, ...]:
    """Conditions that the two halves of a guided batch have each for itself: those with the batch's axis."""
    if guidance is None:
        return ()
    batch = program.shape(roles.sample)[0]
    if not isinstance(batch, str) or batch not in {d.name for d in program.dims}:
        raise UserError(
            f"guidance runs the network on a batch of twice the size, and it was captured for {batch} samples alone",
            hint=f"capture it with a free batch: dynamic={{{roles.sample!r}: {{0: 'batch'}}, ...}}",
        )
    limit = next(d.maximum for d in program.dims if d.name == batch)
    if limit is not None and limit < 2 * _LEAST_FREE:
        raise UserError(
            f"guidance runs the network on a batch of twice the size, and it was captured for at most {limit} samples",
            hint=f"capture it for more: dims={{{batch!r}: (1, 16)}}",
        )
    read = read_inputs(program, roles.prediction)
    found = tuple(name for name in roles.conditions if name in read and program.shape(name)[:1] == (batch,))
    if not found or guidance.unconditional.keys() - set(found):
        raise UserError(
            f"guidance needs a condition that the prediction {roles.prediction!r} depends on, one per sample",
            why=f"it depends on {sorted(read)}; conditions among them with one per sample: {list(found) or 'none'}",
            hint="leave guidance out for a network without conditions",
        )
    for name, value in guidance.unconditional.items():
        dtype = next(i.dtype for i in program.inputs if i.name == name)
        # Filling would cut it off: another label, whose guidance looks like any other.
        if not dtype.is_floating_point and not float(value).is_integer():
            raise UserError(
                f"{value:g} cannot stand for no {name}, which is {str(dtype).removeprefix('torch.')}",
                hint="write the whole number that the network was trained with for it",
            )
    return found


class _Parts:
    """Captures functions of tensors that have the network's sizes."""

    def __init__(self, program: Program, roles: Roles, state_dtype: torch.dtype, *, is_guided: bool) -> None:
        self._program, self._roles, self._state_dtype = program, roles, state_dtype
        self._batch = program.shape(roles.sample)[:1]
        self._half = 2 if is_guided else 1

    def sample(self) -> tuple[Tensor, _Axes]:
        """An example of the state, and its free axes."""
        example = self._example(self._roles.sample)
        return torch.zeros_like(example, dtype=self._state_dtype), self._axes(self._roles.sample)

    def several(self, count: int) -> tuple[Tensor, _Axes]:
        """An example of so many samples."""
        one, axes = self.sample()
        return one.new_zeros(count, *one.shape), {axis + 1: name for axis, name in axes.items()}

    def condition(self, name: str, *, twice: bool = False) -> tuple[Tensor, _Axes]:
        """An example of a condition; [2, *shape], for both halves of a guided batch, if ``twice``."""
        example, axes = self._example(name), self._axes(name)
        if twice:
            return torch.stack([example, example]), {axis + 1: size for axis, size in axes.items()}
        return example, axes

    def captured(self, name: str, inputs: Mapping[str, tuple[Tensor, _Axes]], compute: Compute, **more: Any) -> Program:
        """The program of a function."""
        module = NamedModule(list(inputs), compute, **more).eval()
        examples = {key: example for key, (example, _) in inputs.items()}
        dynamic = {key: axes for key, (_, axes) in inputs.items() if axes}
        found = capture(module, (), examples, dynamic=dynamic, dims=self._dims(dynamic))
        source = f"{name} of {self._program.provenance.source}"
        return dataclasses.replace(found, provenance=dataclasses.replace(self._program.provenance, source=source))

    def _example(self, name: str) -> Tensor:
        """The input as it was captured, at sizes that half a batch may have; zeros where a file brought none."""
        spec = next(one for one in self._program.interface.inputs if one.name == name)
        allowed = self._ranges()
        traced = {d.name: min(d.traced, allowed[d.name][1] or d.traced) for d in self._program.dims}
        self._axes(name)
        shape = tuple(size if isinstance(size, int) else traced[size] for size in spec.shape)
        known = self._program.example.get(name)
        if known is None:
            return torch.zeros(shape, dtype=spec.dtype)
        return known[tuple(slice(size) for size in shape)]

    def _axes(self, name: str) -> _Axes:
        known = {d.name for d in self._program.dims}
        shape = self._program.shape(name)
        derived = [size for size in shape if isinstance(size, str) and size not in known]
        if derived:
            raise UserError(
                f"{name!r} is {list(shape)}: a size that follows from others cannot be folded into a sampler"
            )
        return {axis: size for axis, size in enumerate(shape) if isinstance(size, str)}

    def _dims(self, dynamic: Mapping[str, _Axes]) -> dict[str, tuple[int, int | None]]:
        used = {name for axes in dynamic.values() for name in axes.values()}
        return {name: sizes for name, sizes in self._ranges().items() if name in used}

    def _ranges(self) -> dict[str, tuple[int, int | None]]:
        """Of the sampler's dimensions: a guided batch is half of the network's."""
        found: dict[str, tuple[int, int | None]] = {}
        for d in self._program.dims:
            half = self._half if self._batch == (d.name,) else 1
            found[d.name] = (-(-d.minimum // half), d.maximum // half if d.maximum is not None else None)
        return found
