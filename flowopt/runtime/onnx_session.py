"""Run an ONNX file in ONNX Runtime: torch tensors in, torch tensors out."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor

from flowopt.errors import MalformedModel, MissingDependency, ModelNotFound, UserError
from flowopt.runtime.layout import OUTPUT_NAMES_KEY
from flowopt.runtime.providers import CPU_PROVIDER, CUDA_PROVIDER, cuda_available, onnxruntime_for

__all__ = ["CPU_PROVIDER", "CUDA_PROVIDER", "LEVELS", "Level", "OnnxRunner", "cuda_available", "open_session"]

Level = Literal["disabled", "basic", "extended", "all"]
LEVELS: tuple[Level, ...] = ("disabled", "basic", "extended", "all")
# ONNX Runtime has these dtypes, NumPy has not; they cross as OrtValues.
_ONNX_TYPE = {
    torch.bfloat16: 16,
    torch.float8_e4m3fn: 17,
    torch.float8_e4m3fnuz: 18,
    torch.float8_e5m2: 19,
    torch.float8_e5m2fnuz: 20,
}
_BEYOND_NUMPY = ("tensor(bfloat16)", "tensor(float8")


@final
class OnnxRunner:
    """One ONNX Runtime session.

    Attributes:
        inputs: names of the required inputs.
        optional: names of the inputs that have a stored default.
        outputs: names of the outputs, in order.
        providers: the execution providers in use, by priority.
        metadata: the model's own key-value metadata.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs: tuple[str, ...] = tuple(i.name for i in session.get_inputs())
        self.optional: tuple[str, ...] = tuple(i.name for i in session.get_overridable_initializers())
        self.providers: tuple[str, ...] = tuple(session.get_providers())
        self.metadata: Mapping[str, str] = dict(session.get_modelmeta().custom_metadata_map)
        self._session_outputs = [o.name for o in session.get_outputs()]
        named = json.loads(self.metadata.get(OUTPUT_NAMES_KEY, "null"))
        # ONNX forbids an output with an input's name; the model says what such an output is called.
        self.outputs: tuple[str, ...] = tuple(map(str, named)) if named else tuple(self._session_outputs)
        self._beyond_numpy = any(v.type.startswith(_BEYOND_NUMPY) for v in session.get_outputs())

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every output by name, on the CPU. Inputs are read in place where they are contiguous CPU tensors.

        Raises:
            UserError: an input is unknown or missing.
        """
        unknown = sorted(inputs.keys() - {*self.inputs, *self.optional})
        missing = [name for name in self.inputs if name not in inputs]
        if unknown or missing:
            raise UserError(f"inputs missing: {missing}, unknown: {unknown}; the model takes {list(self.inputs)}")
        ready = {name: tensor.detach().cpu().contiguous() for name, tensor in inputs.items()}
        if self._beyond_numpy or any(t.dtype in _ONNX_TYPE for t in ready.values()):
            values = self._run_ort_values(ready)
        else:
            arrays = self._session.run(self._session_outputs, {n: t.numpy() for n, t in ready.items()})
            values = [torch.as_tensor(array) for array in arrays]
        return dict(zip(self.outputs, values, strict=True))

    def _run_ort_values(self, ready: Mapping[str, Tensor]) -> list[Tensor]:
        feeds = {name: _ort_value(tensor) for name, tensor in ready.items()}
        results = self._session.run_with_ort_values(self._session_outputs, feeds)
        return [_tensor(value) for value in results]


def open_session(
    path: str | Path,
    *,
    level: Level = "all",
    providers: Sequence[str] = (CPU_PROVIDER,),
    threads: int | None = None,
) -> OnnxRunner:
    """Open an ONNX file.

    Args:
        path: the model; its weight files lie in the same folder.
        level: how far ONNX Runtime may rewrite the graph.
        providers: ONNX Runtime's names, by priority. The first must be there: a session on another device than the
            one that was asked for is an error, not a surprise.
        threads: threads within one operator; None lets ONNX Runtime choose.

    Raises:
        MissingDependency: onnxruntime, or the provider, is not installed.
        ModelNotFound, MalformedModel: no file, or none that ONNX Runtime can load.
        UserError: an unknown level, or an operator without a kernel.
    """
    if level not in LEVELS:
        raise UserError(f"optimisation level {level!r}; use one of {', '.join(LEVELS)}")
    if not Path(path).is_file():
        raise ModelNotFound(f"no file {path}")
    ort = onnxruntime_for(providers[0])
    options = ort.SessionOptions()
    options.graph_optimization_level = {
        "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    }[level]
    options.log_severity_level = 3  # errors: it warns of every input that has a default
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = ort.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:
        # ONNX Runtime raises a dozen unrelated types; their names say what is wrong.
        raise _refusal(Path(path), error) from error
    if session.get_providers()[0] != providers[0]:
        raise MissingDependency(
            f"{providers[0]} did not start; ONNX Runtime would run on {session.get_providers()[0]} instead",
            hint="check the GPU driver and CUDA version, or pass provider='cpu'",
        )
    return OnnxRunner(session)


def _refusal(path: Path, error: Exception) -> Exception:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if type(error).__name__ == "NotImplemented":
        return UserError(f"ONNX Runtime has no kernel for an operator of {path.name}", why=reason)
    return MalformedModel(f"ONNX Runtime cannot load {path.name}", why=reason)


def _ort_value(tensor: Tensor) -> Any:
    from onnxruntime import OrtValue

    onnx_type = _ONNX_TYPE.get(tensor.dtype)
    if onnx_type is None:
        return OrtValue.ortvalue_from_numpy(tensor.numpy())
    unsigned = torch.uint16 if tensor.element_size() == 2 else torch.uint8
    return OrtValue.ortvalue_from_numpy_with_onnx_type(tensor.view(unsigned).numpy(), onnx_type)


def _tensor(value: Any) -> Tensor:
    if value.data_type() == "tensor(bfloat16)":
        return torch.utils.dlpack.from_dlpack(value)
    try:
        return torch.as_tensor(value.numpy())
    except RuntimeError as error:
        raise UserError(f"an output of type {value.data_type()} has no way back to torch") from error
