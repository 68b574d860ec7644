"""flowopt rewrites trained PyTorch models the way a compiler rewrites programs, and proves every rewrite it keeps.

The public names below load on first use, so that ``import flowopt`` costs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowopt.errors import FlowoptError
    from flowopt.formats.limits import Limits
    from flowopt.pipeline.runner import PipelineRun
    from flowopt.program.capture import capture
    from flowopt.program.loading.load import load
    from flowopt.program.program import Program
    from flowopt.program.sampler_program import SamplerProgram
    from flowopt.recovery.settings import RecoverySettings
    from flowopt.report.report import Report
    from flowopt.report.sites import Applied, Refusal
    from flowopt.report.verdict import Outcome, Verdict
    from flowopt.rewrite.base import Exactness, RewritePass
    from flowopt.rewrite.budget import Budget
    from flowopt.rewrite.domain import Domain
    from flowopt.rewrite.edit import Edit
    from flowopt.rewrite.site import Site
    from flowopt.runtime.artifact import Artifact
    from flowopt.workflows.adapt import AdaptResult, adapt
    from flowopt.workflows.adapting.budget import QualityBudget
    from flowopt.workflows.adapting.recovery_plan import RecoveryPlan
    from flowopt.workflows.bench import bench
    from flowopt.workflows.explain import explain
    from flowopt.workflows.inspect import inspect_model
    from flowopt.workflows.inspect_artifact import inspect_artifact
    from flowopt.workflows.optimize import OptimizeResult, optimize
    from flowopt.workflows.pipelines import Pipeline
    from flowopt.workflows.sampler import SamplerResult, optimize_sampler
    from flowopt.workflows.tune import tune
    from flowopt.workflows.tuned import Tuned
    from flowopt.workflows.verify import verify

_HOME = {
    "AdaptResult": "flowopt.workflows.adapt",
    "Applied": "flowopt.report.sites",
    "Artifact": "flowopt.runtime.artifact",
    "Budget": "flowopt.rewrite.budget",
    "Domain": "flowopt.rewrite.domain",
    "Edit": "flowopt.rewrite.edit",
    "Exactness": "flowopt.rewrite.base",
    "FlowoptError": "flowopt.errors",
    "Limits": "flowopt.formats.limits",
    "OptimizeResult": "flowopt.workflows.optimize",
    "Outcome": "flowopt.report.verdict",
    "Pipeline": "flowopt.workflows.pipelines",
    "PipelineRun": "flowopt.pipeline.runner",
    "Program": "flowopt.program.program",
    "QualityBudget": "flowopt.workflows.adapting.budget",
    "RecoveryPlan": "flowopt.workflows.adapting.recovery_plan",
    "RecoverySettings": "flowopt.recovery.settings",
    "Refusal": "flowopt.report.sites",
    "Report": "flowopt.report.report",
    "RewritePass": "flowopt.rewrite.base",
    "SamplerProgram": "flowopt.program.sampler_program",
    "SamplerResult": "flowopt.workflows.sampler",
    "Site": "flowopt.rewrite.site",
    "Tuned": "flowopt.workflows.tuned",
    "Verdict": "flowopt.report.verdict",
    "adapt": "flowopt.workflows.adapt",
    "bench": "flowopt.workflows.bench",
    "capture": "flowopt.program.capture",
    "explain": "flowopt.workflows.explain",
    "inspect_artifact": "flowopt.workflows.inspect_artifact",
    "inspect_model": "flowopt.workflows.inspect",
    "load": "flowopt.program.loading.load",
    "optimize": "flowopt.workflows.optimize",
    "optimize_sampler": "flowopt.workflows.sampler",
    "tune": "flowopt.workflows.tune",
    "verify": "flowopt.workflows.verify",
}

__version__ = "0.1.0"
__all__ = [
    "AdaptResult",
    "Applied",
    "Artifact",
    "Budget",
    "Domain",
    "Edit",
    "Exactness",
    "FlowoptError",
    "Limits",
    "OptimizeResult",
    "Outcome",
    "Pipeline",
    "PipelineRun",
    "Program",
    "QualityBudget",
    "RecoveryPlan",
    "RecoverySettings",
    "Refusal",
    "Report",
    "RewritePass",
    "SamplerProgram",
    "SamplerResult",
    "Site",
    "Tuned",
    "Verdict",
    "adapt",
    "bench",
    "capture",
    "explain",
    "inspect_artifact",
    "inspect_model",
    "load",
    "optimize",
    "optimize_sampler",
    "tune",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'flowopt' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
