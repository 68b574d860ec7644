"""A Relax module becomes a library for one GPU architecture, with or without such a GPU at hand."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tvm
import tvm_ffi
from tvm import relax

from flowopt.lowering.tvm.cuda.architecture import cuda_target
from flowopt.lowering.tvm.cuda.cuda_library import CudaLibrary
from flowopt.lowering.tvm.cuda.kernels import with_kernels
from flowopt.lowering.tvm.cuda.nvcc import device_code, require_nvcc

# What TVM calls to compile source where the CUDA driver is installed.
_COMPILE = "tvm_callback_cuda_compile"


def compiled_for_cuda(module: Any, arch: str) -> CudaLibrary:
    """Compile every operator of a module into kernels for an architecture.

    float32 stays float32: products are fused multiply-adds on CUDA cores, not TF32 on tensor cores, and functions
    are CUDA's accurate ones.

    Args:
        module: an ``IRModule`` whose ``main`` takes inputs and then parameters; dimensions may be free.
        arch: such as sm_90; no GPU is looked for.

    Raises:
        UserError: there is no such architecture.
        MissingDependency: there is no nvcc.
        InternalError: an operator has no kernel.
    """
    target = cuda_target(arch)
    require_nvcc()
    with _device_code_for(arch), target:
        lowered = _lowered(module, target)
        executable = relax.build(lowered, target, relax_pipeline=None)
    return CudaLibrary(executable, arch)


def _lowered(module: Any, target: Any) -> Any:
    transform = relax.transform
    kernels = [
        relax.backend.DispatchSampling(),
        # Sorts, scans and the largest k as several kernels each; no other rule can split them.
        relax.backend.DispatchSortScan(),
        transform.LegalizeOps(),
        transform.AnnotateTIROpPattern(),
        transform.FoldConstant(),
        transform.FuseOps(),
        transform.FuseTIR(),
        transform.DeadCodeElimination(),
    ]
    virtual_machine = [
        transform.RewriteDataflowReshape(),
        transform.ToNonDataflow(),
        transform.RemovePurityChecking(),
        transform.CallTIRRewrite(),
        transform.StaticPlanBlockMemory(),
        transform.LowerAllocTensor(),
        transform.KillAfterLastUse(),
        transform.LowerRuntimeBuiltin(),
        transform.ComputePrimValue(),
        transform.VMShapeLower(),
        transform.AttachGlobalSymbol(),
    ]
    fused = tvm.transform.Sequential(kernels)(module)
    return tvm.transform.Sequential(virtual_machine)(with_kernels(fused, target))


@contextmanager
def _device_code_for(arch: str) -> Iterator[None]:
    """TVM compiles what it writes for this architecture, and at full precision.

    Where the CUDA driver is absent TVM does not compile at all: ``CudaLibrary`` does when it is written.
    """
    before = tvm.get_global_func(_COMPILE, allow_missing=True)
    tvm_ffi.register_global_func(_COMPILE, lambda source: device_code(str(source), arch), override=True)
    try:
        yield
    finally:
        if before is not None:
            tvm_ffi.register_global_func(_COMPILE, before, override=True)
