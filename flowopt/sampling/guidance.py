"""Classifier-free guidance: the network once for each sample with its condition and once without."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, final

from flowopt.errors import UserError


@final
@dataclass(frozen=True, slots=True)
class ClassifierFree:
    """Guidance away from what the network says without a condition.

    With c the network's output for the condition and u the one without it, the sampler gets

        difference="from-unconditional"    u + scale * (c - u)       scale 1: no guidance
        difference="from-conditional"      c + scale * (c - u)       scale 0: no guidance

    Both come out of one run of the network on a batch of twice the size.

    Attributes:
        scale: one number, one per evaluation of the network, or None: an input ``guidance_scale`` of the sampler.
        unconditional: condition input to what stands for "no condition": a number (a class label) that fills the
            whole input. A condition that is not here has an input of its own, ``unconditional_<name>``, such as the
            embedding of an empty or negative prompt.
        difference: which of the two conventions.
        order: which half of the batch comes first. A network computes each sample alike wherever it stands; the
            order matters where its bits are to be those of a library.
        channels: guide only the first so many channels (axis 1), the rest is the conditional output's, as DiT and SiT
            do with 3.

    Raises:
        UserError: a scale that is not finite, no channels.

    Source: Ho and Salimans, "Classifier-Free Diffusion Guidance".
    """

    scale: float | tuple[float, ...] | None
    unconditional: Mapping[str, float] = field(default_factory=dict)
    difference: Literal["from-unconditional", "from-conditional"] = "from-unconditional"
    order: Literal["unconditional-first", "conditional-first"] = "unconditional-first"
    channels: int | None = None

    def __post_init__(self) -> None:
        scales = self.scale if isinstance(self.scale, tuple) else (() if self.scale is None else (self.scale,))
        if any(not abs(s) < float("inf") for s in scales):
            raise UserError(f"guidance scale {self.scale} is not finite")
        if self.channels is not None and self.channels < 1:
            raise UserError(f"guidance of {self.channels} channels", hint="leave channels out to guide all of them")

    def scales(self, evaluations: int) -> tuple[float, ...] | None:
        """The scale at each evaluation; None where it is an input.

        Raises:
            UserError: as many scales as evaluations are needed, and another number is given.
        """
        if self.scale is None:
            return None
        if not isinstance(self.scale, tuple):
            return (self.scale,) * evaluations
        if len(self.scale) != evaluations:
            raise UserError(
                f"{len(self.scale)} guidance scales for {evaluations} evaluations of the network",
                hint="give one scale, or one per evaluation (a solver of second order has two per step)",
            )
        return self.scale
