"""A folded sampler's steps where each gets the state that the library's loop had by then."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowopt.ir.float64 import raised_tensor
from flowopt.program.sampler_program import SamplerProgram
from flowopt.sampling import SamplerSpec, realize
from tests.sampling.networks import relative
from tests.sampling.pipelines import Case, LibraryRun, Singly

Run = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Forced:
    """One step: all that it gets, and the library's next network input (the sample behind the last step)."""

    number: int
    feed: dict[str, Tensor]
    expected: Tensor

    def error(self, run: Run) -> float:
        """Of the first state that comes out, in parts of the largest number."""
        return relative(next(iter(run(self.feed).values())), self.expected)


def forced_steps(
    folded: SamplerProgram, spec: SamplerSpec, run: LibraryRun, inputs: Mapping[str, Tensor]
) -> tuple[Forced, ...]:
    """Every step of a deterministic sampler with the library's own network input.

    What else is carried follows from the library's guided predictions, in float64: a library keeps them in a list.
    """
    loop = realize(spec)
    start = torch.from_numpy(loop.start)
    carry, gain = torch.from_numpy(loop.carry), torch.from_numpy(loop.gain)
    values = {**inputs, **folded.prologue.run_named(dict(inputs))}
    state = torch.tensordot(start[:, None], inputs["noise"].double()[None], 1)
    found = []
    for number, (given, predicted, following) in enumerate(zip(run.given, run.predicted, run.following, strict=True)):
        forced = [given, *state[1:].float()]
        feed = folded.step_inputs(number, {**values, **dict(zip(folded.loop.state, forced, strict=True))})
        found.append(Forced(number, feed, following))
        state = torch.tensordot(carry[number], state, 1)
        state = state + torch.tensordot(gain[number][:, None], predicted.double()[None], 1)
    return tuple(found)


@torch.no_grad()
def library_against_itself(
    case: Case, module: nn.Module, spec: SamplerSpec, run: LibraryRun, inputs: Mapping[str, Tensor]
) -> tuple[float, ...]:
    """How far the library's own steps move when its network runs for each sample of the batch by itself."""
    gain, found = realize(spec).gain[:, 0], []
    for number, (time,) in enumerate(spec.times):
        told = torch.tensor(time * case.time_divisor)
        again = case.predict(case, Singly(module), run.given[number], told, inputs)
        moved = run.following[number] + float(gain[number]) * (again - run.predicted[number]).double()
        found.append(relative(moved, run.following[number]))
    return tuple(found)


def step_in_double(folded: SamplerProgram, number: int) -> Run:
    """A step of the float64 twin, as a function of what the step itself gets."""
    twin, loop = folded.raised_copy(), folded.loop

    def run(feed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        exact = {name: raised_tensor(value) for name, value in feed.items()}
        exact |= {name: table[number] for name, table in loop.exact_tables.items() if name in exact}
        return twin.step.run_named(exact)

    return run
