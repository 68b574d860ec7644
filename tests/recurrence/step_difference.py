"""How far a step is from its model."""

import torch

from flowopt.program.program import Program
from flowopt.recurrence.step_program import step_program
from flowopt.runtime.stream import Stream
from tests.recurrence.causal_models import VOCABULARY

EXACT = 1e-10


def difference(program: Program, batch: int, length: int) -> float:
    """Largest difference in float64 between the step, token by token, and the model."""
    made = step_program(program, "sequence")
    generator = torch.Generator().manual_seed(length)
    (name,) = (i.name for i in program.inputs)
    if name == "ids":
        given = torch.randint(0, VOCABULARY, (batch, length), generator=generator)
    else:
        given = torch.randn(batch, length, 8, generator=generator, dtype=torch.float64)
    whole = program.raised_copy()
    step = step_program(whole, "sequence").program
    wanted = whole.run_named({name: given})
    stream = Stream(step.run_named, made.recurrence, {"batch": batch}, dtype=torch.float64)
    found = stream.run(**{name: given})
    return max(float((found[key] - wanted[key]).abs().max()) for key in wanted)
