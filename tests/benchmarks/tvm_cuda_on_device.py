"""Libraries of ``--target tvm-cuda`` on a GPU, against float64 and eager float32.

    python tests/benchmarks/tvm_cuda_on_device.py --precompile FOLDER [--arch sm_90] [--models gpt2 ...]
    python tests/benchmarks/tvm_cuda_on_device.py --run FOLDER
    python tests/benchmarks/tvm_cuda_on_device.py --live [--models gpt2 ...]

The first needs no GPU: from the repository's root it writes each model's library, arguments and expected outputs.
The second needs no repository, no torch and no compiler: tvm, numpy and this file. The third does both for the GPU
that it finds. A line of output is one model at one set of sizes:

    gpt2          seven:3,sequence:5      error 1.2e-07   eager 1.1e-07    0.412 ms
"""

import argparse
import contextlib
import ctypes
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_MODELS = ("gpt2", "llama", "bert", "vit", "resnet", "t5", "mixtral", "dit", "unet2d", "mamba")
_CALLS = 50


def main(arguments: Sequence[str]) -> int:
    """Exit code 1 where a library does not run, or is further off than eager by a factor of 16 and a millionth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precompile", type=Path, metavar="FOLDER")
    parser.add_argument("--run", type=Path, metavar="FOLDER")
    parser.add_argument("--live", action="store_true")
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--models", nargs="*", default=list(_MODELS))
    chosen = parser.parse_args(arguments)
    _print_machine()
    if chosen.precompile:
        return _precompile(chosen.precompile, chosen.arch, chosen.models)
    if chosen.run:
        return _run(chosen.run)
    if chosen.live:
        with tempfile.TemporaryDirectory() as folder:
            failed = _precompile(Path(folder), _own_architecture(), chosen.models)
            return _run(Path(folder)) or failed
    parser.print_usage()
    return 2


def _load_cuda_runtime() -> None:
    """TVM's CUDA half needs libcudart.so.13, and leaves itself out without a word where the loader finds none.

    PyPI's packages, torch's among them, put it where no loader looks.
    """
    folders = [*sys.path, "/usr/local/cuda", "/usr/local/cuda-13.0"]
    places = [Path(folder, name) for folder in folders for name in ("nvidia/cu13/lib", "lib64") if folder]
    for path in ["libcudart.so.13", *(str(place / "libcudart.so.13") for place in places)]:
        with contextlib.suppress(OSError):
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
            print(f"CUDA runtime {path}")
            return
    print("CUDA runtime libcudart.so.13 not found; pip install 'nvidia-cuda-runtime==13.*'")


def _print_machine() -> None:
    _load_cuda_runtime()
    import tvm

    device = tvm.cuda(0)
    found = f"{device.device_name}, compute capability {device.compute_version}" if device.exist else "none"
    print(f"GPU {found}; nvcc {shutil.which('nvcc')}; g++ {shutil.which('g++')}; tvm {tvm.__version__}")


def _own_architecture() -> str:
    import tvm

    return "sm_" + str(tvm.cuda(0).compute_version).replace(".", "")


def _precompile(folder: Path, arch: str, names: Sequence[str]) -> int:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from flowopt.errors import FlowoptError

    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in names:
        start = time.perf_counter()
        try:
            _write(folder / name, name, arch)
        except FlowoptError as error:
            print(f"{name:14s}not compiled: {error}")
            failed = 1
            continue
        size = sum(path.stat().st_size for path in folder.glob(f"{name}.*"))
        print(f"{name:14s}{time.perf_counter() - start:5.1f} s {size / 1e6:6.2f} MB", flush=True)
    return failed


def _write(stem: Path, name: str, arch: str) -> None:
    """``stem.so`` and ``stem.npz``: parameters, and of each case its sizes, inputs, exact and eager outputs."""
    import numpy
    import torch

    from flowopt.ir.float64 import raised_tensor
    from flowopt.lowering.tvm.cuda.pipeline import compiled_for_cuda
    from flowopt.lowering.tvm.imported import imported
    from flowopt.pipeline.presets import DEFAULT_PRESET
    from flowopt.pipeline.runner import run_passes
    from flowopt.pipeline.text import parse_pipeline
    from flowopt.program.capture import capture
    from tests.zoo.architectures import ARCHITECTURES

    model = ARCHITECTURES[name]()
    original = capture(model.module, (), model.kwargs, dynamic=model.dynamic, dims=model.dims)
    program = run_passes(original, parse_pipeline(DEFAULT_PRESET)).program
    found = imported(program)
    compiled_for_cuda(found.module, arch).export_library(stem.with_suffix(".so"))
    stored = {f"parameter_{i:04d}": program.tensors[key] for i, key in enumerate(found.parameters)}
    traced = {d.name: d.traced for d in program.dims}
    smaller = {d.name: max(d.minimum, d.traced - 1) for d in program.dims}
    arrays: dict[str, Any] = {}
    for case, sizes in enumerate([traced, smaller] if smaller != traced else [traced]):
        inputs = {key: _narrowed(value, model.dynamic.get(key, {}), sizes) for key, value in program.example.items()}
        bound = program.bind((), inputs)
        eager = program.run_named(bound)
        exact = original.raised_copy().run_named({key: raised_tensor(value) for key, value in bound.items()})
        arrays[f"sizes_{case}"] = ",".join(f"{key}:{size}" for key, size in sizes.items()) or "fixed"
        stored |= {f"input_{case}_{i:04d}": bound[given.name] for i, given in enumerate(program.inputs)}
        stored |= {f"eager_{case}_{i:04d}": value for i, value in enumerate(eager.values())}
        stored |= {f"exact_{case}_{i:04d}": value for i, value in enumerate(exact.values())}
    with torch.no_grad():
        arrays |= {key: value.detach().contiguous().numpy() for key, value in stored.items()}
    numpy.savez_compressed(stem.with_suffix(".npz"), **arrays)


def _narrowed(value: Any, axes: Mapping[int, str], sizes: Mapping[str, int]) -> Any:
    for axis, dim in axes.items():
        value = value.narrow(axis, 0, sizes[dim])
    return value


def _run(folder: Path) -> int:
    import tvm

    if not tvm.cuda(0).exist:
        print("no GPU: TVM finds no CUDA device, or its libtvm_runtime_cuda.so lacks libcuda.so.1 or libcudart")
        return 1
    wrong = 0
    for library in sorted(folder.glob("*.so")):
        try:
            for line, is_near in _measured(library):
                print(f"{library.stem:14s}{line}{'' if is_near else '   WRONG'}", flush=True)
                wrong |= not is_near
        except (RuntimeError, ValueError, TypeError) as error:
            print(f"{library.stem:14s}does not run: {error}", flush=True)
            wrong = 1
    return int(wrong)


def _measured(library: Path) -> Iterator[tuple[str, bool]]:
    """A line for each case of a library, and whether its numbers are near."""
    import numpy
    import tvm
    from tvm import relax

    device = tvm.cuda(0)
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(library)), device)
    arrays = numpy.load(library.with_suffix(".npz"))

    def named(prefix: str) -> list[Any]:
        return [arrays[key] for key in sorted(arrays.files) if key.startswith(prefix)]

    parameters = [tvm.runtime.tensor(array, device) for array in named("parameter_")]
    for case in range(sum(key.startswith("sizes_") for key in arrays.files)):
        given = [*(tvm.runtime.tensor(array, device) for array in named(f"input_{case}_")), *parameters]
        outputs = [output.numpy() for output in machine["main"](*given)]
        seconds = _seconds(lambda given=given: machine["main"](*given), device)
        exact, eager = named(f"exact_{case}_"), named(f"eager_{case}_")
        error, own = _error(outputs, exact), _error(eager, exact)
        sizes = str(arrays[f"sizes_{case}"])
        yield f"{sizes:34s}error {error:.1e}   eager {own:.1e} {1000 * seconds:8.3f} ms", error <= 16 * own + 1e-6


def _error(found: Sequence[Any], exact: Sequence[Any]) -> float:
    """The largest difference of an output over its largest number; infinite where what is finite differs."""
    import numpy

    worst = 0.0
    for value, wanted in zip(found, exact, strict=True):
        finite = numpy.isfinite(wanted)
        if value.shape != wanted.shape or (numpy.isfinite(value) != finite).any():
            return float("inf")
        if finite.any():
            difference = numpy.abs(value[finite].astype("float64") - wanted[finite]).max()
            worst = max(worst, float(difference / max(float(numpy.abs(wanted[finite]).max()), 1e-30)))
    return worst


def _seconds(call: Any, device: Any) -> float:
    """The fastest of several calls, from the host's call until the GPU is done."""
    fastest = float("inf")
    for _ in range(_CALLS):
        start = time.perf_counter()
        call()
        device.sync()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
