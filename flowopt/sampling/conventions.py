"""The conventions of code bases, as they are: their quirks are part of what their networks were judged with."""

import dataclasses

from flowopt.errors import UserError
from flowopt.nearest import nearest
from flowopt.sampling.convention import Convention

RECTIFIED_FLOW = Convention(
    name="rectified-flow",
    noise_time=0.0,
    data_time=1.0,
    first_time=1e-3,
    last_time=1.0,
    time_scale=999.0,
    steps_cover_path=True,
)
"""t_i = i/N (1 - eps) + eps with eps = 1e-3, but steps of 1/N, longer than the grid's; the network is told 999 t.

Source: gnobitab/RectifiedFlow at 5a1fd4dd3ea7, the Euler sampler of sde_lib.py and sampling.py.
"""

INSTAFLOW = Convention(
    name="instaflow",
    noise_time=0.0,
    data_time=1.0,
    first_time=0.0,
    last_time=1.0,
    time_scale=1000.0,
    time_rule="reversed",
)
"""x += v / N; the network is told 1000 (1 - i/N).

Source: gnobitab/InstaFlow at f543f81db7db.
"""

BOSS = Convention(
    name="boss",
    noise_time=0.0,
    data_time=1.0,
    first_time=0.0,
    last_time=1.0,
    time_scale=999.0,
    time_rule="squeezed",
    epsilon=1e-3,
)
"""The networks of rectified-flow on a grid over [0, 1] whose steps are its true differences; told 999 (t (1-eps)+eps).

Source: nguyenngocbaocmt02/BOSS at 0c170f967848.
"""

RFPP = Convention(name="rfpp", first_time=1.0 - 1e-5, ends="replaced", asks_at_end=False, start="scaled-noise")
"""t_i = i/N downwards with the first replaced by 1 - 1e-5, and the noise scaled by it; an Euler step ends Heun's.

The network is the wrapper EDMPrecondVel, which returns (x - D) / t and divides by t. For the bare network inside it
write prediction=preconditioned, time_rule=quarter-log-ratio.

Source: sangyun884/rfpp at f7b10a5d71c6, generate.py.
"""

SIT = Convention(name="sit", noise_time=0.0, data_time=1.0, first_time=0.0, last_time=1.0, counts_points=True)
"""linspace(0, 1, steps), which makes one step fewer; path=gvp for networks of that path.

Source: willisma/SiT at 947f95bd3a51, transport/transport.py and integrators.py.
"""

FLOWTURBO = dataclasses.replace(SIT, name="flowturbo", counts_points=False)
"""The networks of sit on linspace(0, 1, steps + 1).

Source: shiml20/FlowTurbo at 361b16ba3704, FlowTurboAssemble of models_assemble.py.
"""

LFM = Convention(
    name="lfm",
    last_time=1e-5,
    least_sigma=1e-5,
    arguments="time-first",
    counts_points=True,
)
"""x = (1-t) data + (1e-5 + (1-1e-5) t) noise; linspace(1, 1e-5, steps), one step fewer; the network takes (t, x).

Source: VinAIResearch/LFM at 4d8e43d89120.
"""

MEANFLOW = Convention(name="meanflow", prediction="average-velocity", second_time="interval")
"""z_r = z_t - (t - r) u(z_t, t, t - r) on linspace(1, 0, steps + 1).

Source: zhuyu-cs/MeanFlow at 04d183c02b14; MP1 (LogSSim/MP1 at 929d4dd4d256) does the same in one step.
"""

DIFFUSERS_FLOW = Convention(name="diffusers-flow", time_scale=1000.0, asks_at_end=False)
"""x += (sigma' - sigma) v with v = noise - data; the network is told 1000 sigma; Heun ends in an Euler step.

Pipelines that divide the time by 1000 again, such as FLUX's, want time_scale=1. The grids of the library's scheduler
classes differ from each other for the same shift; where a scheduler object is at hand, read the table off it.

Source: huggingface/diffusers at 58eb52c0803e, FlowMatchEulerDiscreteScheduler and FlowMatchHeunDiscreteScheduler.
"""

DDPM = Convention(
    name="ddpm",
    path="variance-preserving",
    noise_time=999.0,
    data_time=-1.0,
    first_time=999.0,
    last_time=-1.0,
    prediction="noise",
    schedule="trailing",
    asks_at_end=False,
)
"""Linear betas from 1e-4 to 0.02 over 1000 training steps, noise prediction; the network is told the training step.

Source: Ho et al., arXiv:2006.11239, section 4.
"""

STABLE_DIFFUSION = dataclasses.replace(
    DDPM, name="stable-diffusion", betas="scaled-linear", first_beta=0.00085, last_beta=0.012, ends_in_data=False
)
"""Scaled-linear betas from 0.00085 to 0.012; the last abar is that of training step 0 (set_alpha_to_one=False).

Source: Rombach et al., arXiv:2112.10752; G-U-N/Rectified-Diffusion at f839b28ffe90 with its trailing grid.
"""

EDM = Convention(
    name="edm",
    path="variance-exploding",
    noise_time=80.0,
    data_time=0.0,
    first_time=80.0,
    last_time=0.0,
    prediction="sample",
    schedule="karras:7",
    asks_at_end=False,
    start="scaled-noise",
)
"""The denoiser D(x, sigma) on sigmas of 80 to 0.002 and 0; the noise is scaled by the first.

Source: Karras et al., arXiv:2206.00364, algorithm 1 and table 1.
"""

PFGMPP = dataclasses.replace(EDM, name="pfgmpp", start="noise")
"""EDM with the start as given: its radius is drawn from the prior of PFGM++ outside of the sampler.

Source: Newbeeer/pfgmpp at d57c1ee4488d.
"""

CONVENTIONS = {
    preset.name: preset
    for preset in (
        RECTIFIED_FLOW, INSTAFLOW, BOSS, RFPP, SIT, FLOWTURBO, LFM, MEANFLOW, DIFFUSERS_FLOW, DDPM, STABLE_DIFFUSION,
        EDM, PFGMPP,
    )
}  # fmt: skip


def convention_named(name: str, **changes: float | str | bool) -> Convention:
    """A preset, with fields of Convention changed.

    Raises:
        UserError: no such preset or field, or fields that do not fit each other.
    """
    if name not in CONVENTIONS:
        raise UserError(f"there is no convention {name!r}", hint=nearest(name, CONVENTIONS, otherwise="conventions:"))
    known = [field.name for field in dataclasses.fields(Convention) if field.name != "name"]
    for key in changes:
        if key not in known:
            raise UserError(f"a convention has no {key!r}", hint=nearest(key, known, otherwise="its fields:"))
    preset = CONVENTIONS[name]
    # What follows from another number need not be said twice.
    total = changes.get("train_steps")
    if preset.path == "variance-preserving" and isinstance(total, int):
        changes.setdefault("noise_time", total - 1.0)
        changes.setdefault("first_time", total - 1.0)
    if preset.path == "variance-exploding" and "first_time" in changes:
        changes.setdefault("noise_time", changes["first_time"])
    return dataclasses.replace(preset, **changes)  # type: ignore[arg-type]  # checked by Convention itself
