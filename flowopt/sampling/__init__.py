"""Samplers as tables, and their loops as part of the program.

The names below load on first use, like those of ``flowopt``.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowopt.sampling.convention import Convention
    from flowopt.sampling.conventions import CONVENTIONS, convention_named
    from flowopt.sampling.ends import Epilogue
    from flowopt.sampling.folding import fold
    from flowopt.sampling.guidance import ClassifierFree
    from flowopt.sampling.probing.probe_scheduler import probe_scheduler
    from flowopt.sampling.realization import Realization, realize
    from flowopt.sampling.samplers import make_sampler
    from flowopt.sampling.spec import SamplerSpec
    from flowopt.sampling.trace import Trace

_HOME = {
    "CONVENTIONS": "flowopt.sampling.conventions",
    "ClassifierFree": "flowopt.sampling.guidance",
    "Convention": "flowopt.sampling.convention",
    "Epilogue": "flowopt.sampling.ends",
    "Realization": "flowopt.sampling.realization",
    "SamplerSpec": "flowopt.sampling.spec",
    "Trace": "flowopt.sampling.trace",
    "convention_named": "flowopt.sampling.conventions",
    "fold": "flowopt.sampling.folding",
    "make_sampler": "flowopt.sampling.samplers",
    "probe_scheduler": "flowopt.sampling.probing.probe_scheduler",
    "realize": "flowopt.sampling.realization",
}

__all__ = [
    "CONVENTIONS",
    "ClassifierFree",
    "Convention",
    "Epilogue",
    "Realization",
    "SamplerSpec",
    "Trace",
    "convention_named",
    "fold",
    "make_sampler",
    "probe_scheduler",
    "realize",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'flowopt.sampling' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
