"""Lower a sampler to TVM, and verify the library: each step, and from noise to sample."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowopt.lowering.staging import Staging
from flowopt.lowering.targets import Target
from flowopt.lowering.tvm.lower import Compilation, LoweredTvm, lower_sampler_to_tvm, lower_to_tvm
from flowopt.program.sampler_program import SamplerProgram
from flowopt.report.loop import LoopCase
from flowopt.report.report import LevelVerdict
from flowopt.report.verdict import Verdict
from flowopt.runtime.relax_module import open_relax
from flowopt.runtime.tvm_package import cuda_device_available
from flowopt.verification.loop_check import check_loop
from flowopt.verification.loop_evidence import LoopEvidence
from flowopt.workflows.lower_tvm import COMPILED, IMPORTED, NOTHING


@dataclass(frozen=True, slots=True)
class VerifiedTvmLoop:
    """A staged library, the verdict on it, figures of its cases, and what to record."""

    lowered: LoweredTvm
    levels: tuple[LevelVerdict, ...]
    runtime: dict[str, str]
    cases: tuple[LoopCase, ...] = ()


def lowered_tvm_sampler(
    program: SamplerProgram,
    staging: Staging,
    target: Target,
    evidence: Sequence[LoopEvidence | str] | None,
    seed: int,
    on_progress: Callable[[str], None],
) -> VerifiedTvmLoop:
    """Compile a sampler and judge the library; for CUDA without a device, one for the CPU in its place."""
    wanted = Compilation(target.device, target.arch)
    lowered = lower_sampler_to_tvm(program, staging, wanted)
    runtime = {"verified_on": NOTHING, "arch": target.arch or "native"}
    if evidence is None:
        return VerifiedTvmLoop(lowered, (), runtime)
    judge = _Judge(program, evidence, seed, on_progress)
    if target.device == "cuda" and not cuda_device_available():
        with tempfile.TemporaryDirectory(prefix="flowopt-") as scratch, Staging(Path(scratch) / "cpu") as aside:
            verdict, cases = judge.verdict(lower_sampler_to_tvm(program, aside, Compilation()), Compilation())
        # A good import says nothing of kernels that never ran: only a bad one decides.
        levels = () if verdict else (LevelVerdict(IMPORTED, verdict),)
        return VerifiedTvmLoop(lowered, levels, runtime, () if verdict else cases)
    verdict, cases = judge.verdict(lowered, wanted)
    runtime["verified_on"] = target.device
    return VerifiedTvmLoop(lowered, (LevelVerdict(COMPILED, verdict),), runtime, cases)


@dataclass(frozen=True, slots=True)
class _Judge:
    program: SamplerProgram
    evidence: Sequence[LoopEvidence | str]
    seed: int
    on_progress: Callable[[str], None]

    def verdict(self, lowered: LoweredTvm, wanted: Compilation) -> tuple[Verdict, tuple[LoopCase, ...]]:
        """On a library, and on the same step compiled by itself: inside of a loop it cannot be fed from outside."""
        with tempfile.TemporaryDirectory(prefix="flowopt-") as scratch, Staging(Path(scratch) / "step") as aside:
            self.on_progress("compiling the step by itself")
            step = open_relax(lower_to_tvm(self.program.step, aside, wanted).model)
            self.on_progress("verifying the library")
            whole = open_relax(lowered.model)
            return check_loop(
                self.evidence,
                lambda inputs: next(iter(whole.run(inputs).values())),
                lambda inputs: step.run(inputs),
                seed=self.seed,
            )
