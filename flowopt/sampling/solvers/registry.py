"""The solvers by name, without loading any."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import final

from flowopt.errors import UserError
from flowopt.nearest import nearest
from flowopt.sampling.convention import Convention

_FLOWS = ("linear", "gvp")
_INSTANTANEOUS = ("velocity", "noise", "sample", "v-prediction", "preconditioned")


@final
@dataclass(frozen=True, slots=True)
class SolverEntry:
    """A solver that a command can name.

    Attributes:
        name: as written; the module and its function are called the same, with underscores.
        summary: one line.
        argument: the option that text behind a colon sets, as in ``flowturbo:H2P4``.
        predictions, paths: the conventions it fits; no paths: all.
        counts_steps: the options say how many steps there are (the module has ``step_count``).
        is_known_as: another solver that is this one.
    """

    name: str
    summary: str
    argument: str = ""
    predictions: tuple[str, ...] = _INSTANTANEOUS
    paths: tuple[str, ...] = ()
    counts_steps: bool = False
    is_known_as: str = ""

    def load(self, function: str = "") -> Callable[..., object]:
        """The function itself, or another one of its module."""
        stem = (self.is_known_as or self.name).replace("-", "_")
        found: Callable[..., object] = getattr(import_module(f"flowopt.sampling.solvers.{stem}"), function or stem)
        return found

    def require_fit(self, convention: Convention) -> None:
        """Raise UserError unless the solver means something for such a network."""
        if convention.prediction not in self.predictions:
            if convention.prediction == "average-velocity":
                hint = "write solver=meanflow"
            else:
                hint = f"write a convention with prediction={' or '.join(self.predictions)}, or solver=ddim or dpmpp-2m"
            raise UserError(
                f"the solver {self.name} does not fit the convention {convention.name}",
                why=f"it steps with {' or '.join(self.predictions)}, and the network predicts {convention.prediction}",
                hint=hint,
            )
        if self.paths and convention.path not in self.paths:
            raise UserError(
                f"the solver {self.name} does not fit the convention {convention.name}",
                why=f"it is made for the path {' or '.join(self.paths)}, and this one is {convention.path}",
                hint="write solver=ddim, heun or dpmpp-2m, which take any path",
            )


SOLVERS = {
    entry.name: entry
    for entry in (
        SolverEntry("euler", "Euler's method: one evaluation per step, order 1"),
        SolverEntry("heun", "Heun's method: two evaluations per step, order 2"),
        SolverEntry("midpoint", "the explicit midpoint rule: two evaluations per step, order 2"),
        SolverEntry("rf-solver", "RF-Solver, which is the midpoint rule", is_known_as="midpoint"),
        SolverEntry("fireflow", "the midpoint rule with the slope of the step before: one evaluation per step"),
        SolverEntry("rk4", "the classic Runge-Kutta method: four evaluations per step, order 4"),
        SolverEntry("ab2", "Adams-Bashforth: one evaluation per step, order 2"),
        SolverEntry("ddim", "DDIM; ddim:1 draws noise as ancestral sampling does", argument="eta"),
        SolverEntry(
            "phased", "jumps of DDIM between the edges of phases (Rectified Diffusion)", paths=("variance-preserving",)
        ),
        SolverEntry("dpmpp-2m", "DPM-Solver++(2M): one evaluation per step, order 2"),
        SolverEntry("unipc", "UniPC (bh2) of order 2: one evaluation per step"),
        SolverEntry(
            "pseudo-corrector", "FlowTurbo's pseudo corrector: one evaluation per step", predictions=("velocity",)
        ),
        SolverEntry(
            "flowturbo",
            "FlowTurbo's phases: flowturbo:H2P4 is 2 steps of Heun's method, then 4 of the pseudo corrector",
            argument="phases",
            predictions=("velocity",),
            counts_steps=True,
        ),
        SolverEntry("rfpp-new", "re-noises the predicted data with the initial noise (rfpp)", paths=("linear",)),
        SolverEntry(
            "edm", "the sampler of EDM and PFGM++; edm:40 churns", argument="churn", paths=("variance-exploding",)
        ),
        SolverEntry(
            "sde", "SiT's SDE by Euler and Maruyama; sde:linear takes another diffusion", argument="form", paths=_FLOWS
        ),
        SolverEntry("meanflow", "steps of an average velocity", predictions=("average-velocity",)),
    )
}


def solver_entry(name: str) -> SolverEntry:
    """The solver of a name.

    Raises:
        UserError: there is none, and the nearest names.
    """
    if name not in SOLVERS:
        raise UserError(f"there is no solver {name!r}", hint=nearest(name, SOLVERS, otherwise="solvers:"))
    return SOLVERS[name]
