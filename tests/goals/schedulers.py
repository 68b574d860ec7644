"""The row of probed schedulers: what their tables compute, against their own loops.

``python -m tests.goals.schedulers`` prints the table: per scheduler and number of steps the larger error of the
triangular table and of the loop, and how many tensors that loop carries.
"""

from tests.goals.row import Measured, Row
from tests.sampling.schedulers import CASES, DETERMINISTIC, STEPS, Compared, compared

_GOAL = 2e-6
# Where the library's own steps round the sample by more than the goal: they subtract numbers that are nearly equal
# and divide by a sigma of 0.03 or less. Against the same loop on samples in float64 the goal holds there too.
ROUNDED = frozenset({("flow-match-heun", 2), ("euler-v", 2), ("heun", 2), ("kdpm2-ancestral", 2)})


def error_of(name: str, steps: int, found: Compared) -> float:
    """The error that the goal bounds."""
    return found.in_double if (name, steps) in ROUNDED else max(found.by_table, found.by_loop)


def _schedulers() -> Measured:
    short, rounded, missing, worst, count = [], [], [], 0.0, 0
    for name, case in CASES.items():
        missing += [f"{name}: the library itself has no schedule for {n} steps" for n in STEPS if n < case.least]
        for steps in case.steps:
            found = compared(case, steps)
            error = error_of(name, steps, found)
            worst, count = max(worst, error), count + 1
            if error > _GOAL:
                short.append(f"{name}, {steps} steps: {error:.1e}")
            if (name, steps) in ROUNDED:
                own = max(found.by_table, found.by_loop)
                rounded.append(f"{name}, {steps} steps: the library's rounding, {own:.1e}; without it {error:.1e}")
            rounded += [
                f"{name}, {steps} steps: {note}" for note in found.notes if note.startswith("the scheduler itself")
            ]
    value = f"{count - len(short)} of {count} schedules of {len(CASES)} schedulers, worst {worst:.1e}"
    return Measured(value, not short, (*short, *rounded, *missing))


ROWS = (Row("sampler.schedulers", f"within {_GOAL:.0e}; 4 named, of the library's rounding", _schedulers, True),)


def main() -> None:
    """Print the table."""
    width = max(map(len, CASES))
    print(f"{'':{width}}  " + "  ".join(f"{f'N={steps}':>9}" for steps in STEPS))
    for name, case in CASES.items():
        cells = {steps: compared(case, steps) for steps in case.steps}
        text = [f"{max(c.by_table, c.by_loop):.1e}/{c.rank}" if (c := cells.get(steps)) else "-" for steps in STEPS]
        kind = "" if name in DETERMINISTIC else "  noise"
        print(f"{name:{width}}  " + "  ".join(f"{t:>9}" for t in text) + kind, flush=True)


if __name__ == "__main__":
    main()
