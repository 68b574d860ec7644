"""What a user asks for who wants attention to be linear."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from flowopt.errors import UserError
from flowopt.nearest import nearest
from flowopt.ops.attention.linear_form import AttentionShape, LinearForm
from flowopt.ops.attention.linearizations import LINEARIZATIONS, STEPPED, linearization, options_of
from flowopt.workflows.optimize import Form

BY_ENTROPY = "entropy"
BY_EFFECT = "effect"


@dataclass(frozen=True, slots=True)
class LinearChoice:
    """Which attentions become linear, and how.

    Attributes:
        to: name of the stand-in, of ``flowopt.ops.attention.LINEARIZATIONS``.
        layers: ``all``, positions ``0,2,4-7``, or patterns of module paths.
        keep_softmax: share, 0 to below 1, of the layers that could be replaced which keep softmax, rounded up.
        keep_by: ``entropy``: those of the lowest entropy; ``effect``: of the largest measured effect on the outputs.
        length: tokens at which speed is judged; by default each attention's captured length.
        force: replace layers too where the stand-in is slower at that length.
        calibration: number of batches.
        dry_run: judge, and stop.
        options: of the stand-in, such as ``window``.
        form: that the adapted model is lowered in.
    """

    to: str
    layers: str = "all"
    keep_softmax: float = 0.0
    keep_by: str = BY_ENTROPY
    length: int | None = None
    force: bool = False
    calibration: int = 16
    dry_run: bool = False
    options: Mapping[str, int | float] = field(default_factory=dict)
    form: Form = "parallel"

    def require_known(self) -> None:
        """Raises UserError for what no model could fulfil, before anything is computed."""
        linearization(self.to)
        if not 0 <= self.keep_softmax < 1:
            raise UserError(
                f"keep_softmax={self.keep_softmax} is no share from 0 to below 1",
                hint="0.25 keeps softmax in every fourth layer",
            )
        if self.keep_by not in (BY_ENTROPY, BY_EFFECT):
            known = (BY_ENTROPY, BY_EFFECT)
            raise UserError(f"keep_by={self.keep_by!r} is not known", hint=nearest(self.keep_by, known))
        if self.form == "recurrent" and self.to not in STEPPED:
            raise UserError(
                f"{self.to} cannot be lowered as a step; {', '.join(STEPPED[:-1])} and {STEPPED[-1]} can",
                hint="one of these, or form='parallel'",
            )
        if self.form == "recurrent" and self.keep_softmax:
            raise UserError("a step carries no softmax attention", hint="form='recurrent' with keep_softmax=0")
        if self.length is not None and self.length < 2:
            raise UserError(f"length={self.length} is no length of a sequence", hint="2 or more")
        self.made(AttentionShape(heads=1, head_dim=4, value_dim=4, is_causal=False, scale=0.5), seed=0)

    def made(self, shape: AttentionShape, *, seed: int) -> LinearForm:
        """A stand-in for an attention; what it draws follows from the seed, and nobody else draws otherwise for it.

        Raises:
            UserError: an option that it does not take.
        """
        self._require_options()
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return linearization(self.to)(shape, **self.options)
        except TypeError as error:
            given = ", ".join(f"{name}={value}" for name, value in self.options.items())
            raise UserError(f"{self.to} does not take {given}", why=str(error)) from error

    def _require_options(self) -> None:
        takes = options_of(self.to)
        strange = next((name for name in self.options if name not in (*takes, "form")), None)
        if strange is None:
            return
        owners = [name for name in LINEARIZATIONS if strange in options_of(name)]
        what = f"is of {' and '.join(owners)}" if owners else "is an option of no linear attention"
        raise UserError(
            f"{_written(strange)} {what}", hint=f"{self.to} takes {', '.join(_written(name) for name in takes)}"
        )


def _written(option: str) -> str:
    """As the command line has it, where it does."""
    return f"--{option}" if option in ("window", "chunk") else option
