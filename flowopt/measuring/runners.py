"""Open a contender: a call without arguments that runs the model once, and the outputs as tensors.

Runs in a worker process, which loads one runtime alone. All runtimes get the same number of threads and float32.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowopt.measuring.contender import Contender

Run = Callable[[], Any]
_STATE = "state_"


def opened(contender: Contender, inputs: Mapping[str, Tensor], threads: int) -> tuple[Run, Callable[[], list[Tensor]]]:
    """What to time, and what gives its outputs.

    Args:
        contender: what to run.
        inputs: by name, on the CPU.
        threads: within one operator.

    Raises:
        Exception: whatever the runtime raises on a model that it cannot load or run.
    """
    torch.set_num_threads(threads)
    return _OPENERS[contender.kind](contender.path, inputs, threads)


def _artifact(path: str, inputs: Mapping[str, Tensor], threads: int) -> tuple[Run, Callable[[], list[Tensor]]]:
    from flowopt.runtime.artifact import Artifact
    from flowopt.runtime.layout import TVM_MODEL

    # A library is code; whether it may run was asked before this process was started.
    is_library = (Path(path) / TVM_MODEL).is_file()
    artifact = Artifact.open(path, threads=threads, trust="code" if is_library else "data")
    return lambda: artifact.run_named(inputs), lambda: list(artifact.run_named(inputs).values())


def _onnxruntime(path: str, inputs: Mapping[str, Tensor], threads: int) -> tuple[Run, Callable[[], list[Tensor]]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds = _by_position([i.name for i in session.get_inputs()], inputs)
    arrays = {name: tensor.contiguous().numpy() for name, tensor in feeds.items()}

    def run() -> Any:
        return session.run(None, arrays)

    return run, lambda: [torch.as_tensor(array) for array in run()]


def _eager(path: str, inputs: Mapping[str, Tensor], threads: int) -> tuple[Run, Callable[[], list[Tensor]]]:
    return _called(path, inputs, lambda module: module)


def _compile(path: str, inputs: Mapping[str, Tensor], threads: int) -> tuple[Run, Callable[[], list[Tensor]]]:
    return _called(path, inputs, torch.compile)


def _openvino(path: str, inputs: Mapping[str, Tensor], threads: int) -> tuple[Run, Callable[[], list[Tensor]]]:
    import sys

    # Its converter reports to a server through this package, and does without where it is not installed.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # the spelling of "not installed"
    import openvino

    core = openvino.Core()
    # On processors with bfloat16 it would compute in that by default.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()
    names = [port.any_name for port in request.model_inputs]
    arrays = {name: tensor.contiguous().numpy() for name, tensor in _by_position(names, inputs).items()}

    def run() -> Any:
        return request.infer(arrays, share_inputs=True)

    return run, lambda: [torch.as_tensor(array) for array in run().values()]


def _called(
    path: str, inputs: Mapping[str, Tensor], prepared: Callable[[Any], Any]
) -> tuple[Run, Callable[[], list[Tensor]]]:
    from flowopt.measuring.reference import eager_model

    module, args, kwargs = eager_model(path, inputs)
    ready = prepared(module)

    def run() -> Any:
        with torch.inference_mode():
            return ready(*args, **kwargs)

    return run, lambda: [leaf for leaf in torch.utils._pytree.tree_leaves(run()) if isinstance(leaf, Tensor)]


def _by_position(names: list[str], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs under the names that a file gives them: exporters rename, and keep the order."""
    if all(name in inputs for name in names):
        return {name: inputs[name] for name in names}
    # An export of the module keeps inside what the captured program takes as state.
    given = [tensor for name, tensor in inputs.items() if len(names) == len(inputs) or not name.startswith(_STATE)]
    return dict(zip(names, given, strict=True))


_OPENERS: dict[str, Callable[[str, Mapping[str, Tensor], int], tuple[Run, Callable[[], list[Tensor]]]]] = {
    "artifact": _artifact,
    "onnxruntime": _onnxruntime,
    "eager": _eager,
    "compile": _compile,
    "openvino": _openvino,
}
