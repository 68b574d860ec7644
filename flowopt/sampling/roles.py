"""Which input of a network is the sample, which are times, and which output is the prediction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

from torch import Tensor

from flowopt.analysis.binding_times import binding_times
from flowopt.errors import UserError
from flowopt.ir.metadata import recorded_tensor
from flowopt.program.program import Program

_SAMPLES = ("sample", "hidden_states", "x", "x_t", "xt", "z", "z_t", "latents", "noisy")
_TIMES = ("timestep", "timesteps", "t", "time", "times", "sigma", "noise_level", "c_noise")


@final
@dataclass(frozen=True, slots=True)
class Roles:
    """Names of a network's inputs and of its prediction, by what a sampler does with them.

    Attributes:
        sample: what changes from step to step.
        times: what the sampler tells it: one, or two for networks of an average velocity.
        conditions: the other inputs, which stay.
        prediction: the output that the sampler reads.
        is_doubled: the prediction of a picture has twice its channels, of which the first half counts; the others are
            a learned variance, which samplers with a fixed schedule do not read.
    """

    sample: str
    times: tuple[str, ...]
    conditions: tuple[str, ...]
    prediction: str
    is_doubled: bool


def roles_of(
    program: Program,
    count: int,
    *,
    sample: str | None = None,
    times: Sequence[str] | None = None,
    prediction: str | None = None,
) -> Roles:
    """Find the roles by name, then by kind; what is given is only checked.

    Args:
        program: the network.
        count: how many times the sampler gives it.
        sample: name of the input, where the network calls it otherwise than networks do.
        times: names of the inputs, in the sampler's order.
        prediction: name of the output, where there are several.

    Raises:
        UserError: no such names, no telling which is which, or tensors that do not fit: the message lists the inputs.
    """
    if any(i.state for i in program.inputs):
        raise UserError(
            f"the network changes what it stores ({', '.join(str(i.state) for i in program.inputs if i.state)})",
            why="its steps would not be alike",
        )
    named_times = tuple(times) if times is not None else _times(program, count, sample)
    named_sample = sample if sample is not None else _sample(program, named_times)
    for name in (named_sample, *named_times):
        _require_input(program, name)
    if len(set(named_times)) != count or len(named_times) != count:
        raise _refusal(program, f"the sampler gives the network {count} time(s), and {list(named_times)} are its times")
    for name in named_times:
        if _tensor(program, name).dim() > 1 or named_sample == name:
            raise _refusal(program, f"input {name!r} cannot be a time: times have no axis or one")
    if len({_tensor(program, name).dtype for name in named_times}) > 1:
        raise _refusal(program, f"inputs {list(named_times)} cannot both be times: their dtypes differ")
    _require_batch_first(program, named_sample, named_times)
    if not _tensor(program, named_sample).is_floating_point():
        raise _refusal(program, f"input {named_sample!r} cannot be the sample: it is not floating")
    conditions = tuple(i.name for i in program.inputs if i.name not in (named_sample, *named_times))
    output = _prediction(program, prediction)
    return Roles(named_sample, named_times, conditions, output, _is_doubled(program, named_sample, output))


def ordered_roles(
    program: Program, count: int, order: Literal["sample-first", "time-first"], *, prediction: str | None = None
) -> Roles:
    """The roles of inputs whose names say nothing, by their order; what has been found is checked as it is there.

    Raises:
        UserError: as ``roles_of``.
    """
    names = [i.name for i in program.inputs]
    sample, times = (names[:1], names[1 : 1 + count]) if order == "sample-first" else (names[count:][:1], names[:count])
    if not sample:
        raise _refusal(program, f"the sampler gives the network a sample and {count} time(s)")
    return roles_of(program, count, sample=sample[0], times=times, prediction=prediction)


def predicting(program: Program, prediction: str) -> Program:
    """The program without its other outputs, and without what only they need."""
    returned: Any = program.graph.output_node().args[0]
    position = [o.name for o in program.outputs].index(prediction)
    alone = program.copy()
    alone.graph.output_node().args = ((alone.node(returned[position].name),),)
    alone.outputs = (program.outputs[position],)
    alone.drop_unused()
    return alone


def read_inputs(program: Program, prediction: str) -> frozenset[str]:
    """Names of the inputs on which the prediction depends."""
    returned: Any = program.graph.output_node().args[0]
    return binding_times(program.graph)[returned[[o.name for o in program.outputs].index(prediction)]]


def _times(program: Program, count: int, sample: str | None) -> tuple[str, ...]:
    names = [i.name for i in program.inputs if i.name != sample]
    found = [name for name in _TIMES if name in names]
    if found and count == 1:
        return (found[0],)
    flat = [name for name in names if _tensor(program, name).dim() <= 1]
    floating = [name for name in flat if _tensor(program, name).is_floating_point()]
    for candidates in (flat, floating):
        # A label beside a time is no second time.
        if len(candidates) == count and len({_tensor(program, name).dtype for name in candidates}) == 1:
            return tuple(candidates)
    likely = floating or flat
    if len(likely) < count:
        raise _refusal(
            program,
            f"the sampler gives the network {count} time(s), and it takes {', '.join(likely) or 'none'}",
            hint="choose a sampler for such networks: that of an average velocity gives two times, the others one",
        )
    raise _refusal(program, f"which {count} of the inputs the time(s) are cannot be told")


def _sample(program: Program, times: Sequence[str]) -> str:
    rest = [i.name for i in program.inputs if i.name not in times and _tensor(program, i.name).is_floating_point()]
    for name in _SAMPLES:
        if name in rest:
            return name
    if len(rest) != 1:
        raise _refusal(program, "which input the sample is cannot be told")
    return rest[0]


def _prediction(program: Program, prediction: str | None) -> str:
    names = [o.name for o in program.outputs]
    if prediction is None and len(names) == 1:
        return names[0]
    if prediction not in names:
        asked = "" if prediction is None else f"no output {prediction!r}; "
        raise UserError(f"{asked}the network has the outputs {names}", hint=f"say which: prediction={names[0]!r}")
    return prediction


def _is_doubled(program: Program, sample: str, prediction: str) -> bool:
    wanted = program.shape(sample)
    found = program.output_shapes()[[o.name for o in program.outputs].index(prediction)]
    if found == wanted:
        return False
    is_doubled = (
        # Of pictures and videos; twice the tokens of [batch, tokens, features] would mean something else.
        len(wanted) == len(found) >= 4
        and isinstance(wanted[1], int)
        and found == (wanted[0], 2 * wanted[1], *wanted[2:])
    )
    if not is_doubled:
        raise UserError(
            f"the prediction {prediction!r} is {list(found)} and the sample {sample!r} is {list(wanted)}",
            why="a sampler adds the one to the other",
            hint="wrap the network in a module that returns the prediction in the sample's shape",
        )
    return True


def _tensor(program: Program, name: str) -> Tensor:
    value = recorded_tensor(program.node(name))
    assert value is not None, "inputs are tensors"
    return value


def _require_input(program: Program, name: str) -> None:
    if name not in [i.name for i in program.inputs]:
        raise _refusal(program, f"no input {name!r}")


def _require_batch_first(program: Program, sample: str, times: Sequence[str]) -> None:
    sizes = program.shape(sample)
    for name in times:
        of_time = program.shape(name)
        if of_time and isinstance(of_time[0], str) and of_time[0] in sizes[1:]:
            raise UserError(
                f"{of_time[0]!r}, of the times {name!r}, is axis {sizes.index(of_time[0])} of the sample {sample!r}",
                why="a sampler takes the first axis of the sample for its batch",
                hint="wrap the network in a module whose sample has the batch first",
            )


def _refusal(program: Program, message: str, *, hint: str = "say which: sample='x', times=('t',)") -> UserError:
    specs = "\n".join(str(spec) for spec in program.interface.inputs)
    return UserError(message, why=f"the network takes\n{specs}", hint=hint)
