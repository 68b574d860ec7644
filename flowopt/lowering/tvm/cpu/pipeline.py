"""From an imported module to scheduled kernels, and on to an executable, for LLVM targets.

Work on parameters alone, packing above all, leaves ``main`` for a function ``main_transform_params`` of its own: it
runs once when the artifact is made.
"""

from typing import Any

import tvm
from tvm import relax
from tvm.ir.transform import Sequential

from flowopt.lowering.tvm.cpu.aliases import kernels_without_aliases
from flowopt.lowering.tvm.cpu.legalize import LEGALIZATIONS
from flowopt.lowering.tvm.cpu.rules import with_schedules
from flowopt.lowering.tvm.cpu.vector_math import register_vector_math


def scheduled_for_cpu(module: Any, target: Any) -> Any:
    """The module legalised, fused and scheduled; ``main`` takes the transformed parameters.

    Args:
        module: IRModule with one function ``main(inputs.., parameters..)`` and its attribute ``num_input``.
        target: an LLVM Target; vector widths and tile sizes derive from it.

    Returns:
        An IRModule of ``main(inputs.., transformed parameters..)``, ``main_transform_params(tuple of parameters) ->
        tuple of transformed parameters``, and kernels.
    """
    before_fusion = [
        relax.backend.DispatchSampling(),
        relax.backend.DispatchSortScan(),
        relax.transform.CanonicalizeBindings(),
        relax.transform.LegalizeOps(LEGALIZATIONS),
        relax.transform.LiftTransformParams(),
    ]
    with target:
        module = Sequential(before_fusion)(module)
        entries = [v.name_hint for v, function in module.functions_items() if isinstance(function, relax.Function)]
        fusion = [
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FoldConstant(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(entries),
        ]
        return with_schedules(Sequential(fusion)(module), target)


def plain_for_cpu(module: Any, target: Any) -> Any:
    """The module with TVM's own kernels, one for each operator, none of them scheduled: slow, and nobody's doing."""
    legalised = [relax.backend.DispatchSampling(), relax.backend.DispatchSortScan(), relax.transform.LegalizeOps()]
    with target:
        return Sequential(legalised)(module)


def compiled_for_cpu(module: Any, target: Any) -> Any:
    """The executable of a module that ``scheduled_for_cpu`` or ``plain_for_cpu`` returned."""
    register_vector_math()
    return tvm.compile(module, target=target, relax_pipeline=Sequential(_lowering()))


def _lowering() -> list[Any]:
    return [
        relax.transform.RewriteDataflowReshape(),
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
        kernels_without_aliases(),
    ]
