"""The rows of samplers: networks of diffusers against the library's own loops, and what a folded loop costs."""

from tests.goals import sampler_build, sampler_latency, sampler_networks
from tests.goals.row import Row

ROWS = (
    Row(
        "sampler.networks",
        f"within {sampler_networks.GOAL:.0e} a step, times kappa (1 or more) in the end",
        sampler_networks.measure,
        is_long=True,
    ),
    Row("sampler.build", f"at most {sampler_build.MOST:g}", sampler_build.measure, is_long=True),
    Row(
        "sampler.latency",
        f"upper ends {sampler_latency.OF_SESSIONS} of sessions, {sampler_latency.OF_EAGER:g} of eager",
        sampler_latency.measure,
        is_long=True,
    ),
)
