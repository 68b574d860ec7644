"""Run an ONNX file in ONNX Runtime: torch tensors in, torch tensors out."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor

from flowopt.errors import MalformedModel, MissingDependency, ModelNotFound, UserError
from flowopt.formats.onnx.containment import CheckedOnnx
from flowopt.runtime.layout import OUTPUT_NAMES_KEY
from flowopt.runtime.providers import CPU_PROVIDER, CUDA_PROVIDER, cuda_available, onnxruntime_for, with_options

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
        self.outputs: tuple[str, ...] = _output_names(self.metadata, self._session_outputs)
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
    model: str | Path | CheckedOnnx,
    *,
    level: Level = "all",
    providers: Sequence[str] = (CPU_PROVIDER,),
    threads: int | None = None,
    allow_tf32: bool = True,
) -> OnnxRunner:
    """Open an ONNX file.

    Args:
        model: a checked one, whose paths ONNX Runtime then never sees; or the path of one that flowopt itself wrote,
            with its weight files in the same folder.
        level: how far ONNX Runtime may rewrite the graph.
        providers: ONNX Runtime's names, by priority. The first must be there: a session on another device than the
            one that was asked for is an error, not a surprise.
        threads: threads within one operator; None lets ONNX Runtime choose.
        allow_tf32: let CUDA round the factors of float32 products; a verification does not.

    Raises:
        MissingDependency: onnxruntime, or the provider, is not installed.
        ModelNotFound, MalformedModel: no file, or none that ONNX Runtime can load; or a checked one was changed.
        UserError: an unknown level, or an operator without a kernel.
    """
    if level not in LEVELS:
        raise UserError(f"optimisation level {level!r}; use one of {', '.join(LEVELS)}")
    checked = model if isinstance(model, CheckedOnnx) else None
    path = model.path if isinstance(model, CheckedOnnx) else Path(model)
    if checked is None and not path.is_file():
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
    # From bytes, ONNX Runtime would look for weights in the working directory: it gets them from memory.
    source = str(path) if checked is None else checked.content()
    if checked is not None:
        _give_weights(options, checked)
    try:
        # Its fallback prints on the standard output, and tries the CPU, which alone has nothing to fall back to.
        session = ort.InferenceSession(
            source,
            options,
            providers=with_options(providers, allow_tf32=allow_tf32),
            enable_fallback=int(len(providers) > 1),
        )
    except Exception as error:
        # ONNX Runtime raises a dozen unrelated types; their names say what is wrong.
        raise _refusal(path, error) from error
    if checked is not None:
        # It would open the session again, in the middle of a run, from memory that may be gone by then.
        session.disable_fallback()
    if session.get_providers()[0] != providers[0]:
        raise MissingDependency(
            f"{providers[0]} did not start; ONNX Runtime would run on {session.get_providers()[0]} instead",
            hint="check the GPU driver and CUDA version, or pass provider='cpu'",
        )
    try:
        return OnnxRunner(session)
    except UnicodeDecodeError as error:
        # ONNX Runtime does not look whether names and metadata are text.
        raise MalformedModel(f"a name in {path.name} is no text", hint="download it, or build it, again") from error


def _give_weights(options: Any, checked: CheckedOnnx) -> None:
    """Weights by location, from the mapped files. ONNX Runtime copies what it keeps while it makes the session.

    ``add_initializer`` would copy nothing, but ONNX Runtime transposes initializers in place and then reads the
    original under the transposed shape: wrong numbers. ``add_external_initializers`` copies as much as this does.
    """
    options.add_session_config_entry("session.load_model_format", "ONNX")
    if checked.external:
        files = [(name, file.data if file.data is not None else b"") for name, file in checked.external.items()]
        options.add_external_initializers_from_files_in_memory(
            [name for name, _ in files], [data for _, data in files], [len(data) for _, data in files]
        )


def _output_names(metadata: Mapping[str, str], of_session: Sequence[str]) -> tuple[str, ...]:
    """ONNX forbids an output with an input's name; the model says what such an output is called."""
    try:
        named = json.loads(metadata.get(OUTPUT_NAMES_KEY, "null"))
    # The parser recurses: RecursionError where it is nested deeper than the stack.
    except (ValueError, RecursionError) as error:
        raise MalformedModel("the model's names of its outputs are no JSON", hint="build the artifact again") from error
    if not named:
        return tuple(of_session)
    if not isinstance(named, list) or len(named) != len(of_session) or len(set(map(str, named))) != len(named):
        raise MalformedModel("the model's names of its outputs do not fit them", hint="build the artifact again")
    return tuple(map(str, named))


def _refusal(path: Path, error: Exception) -> Exception:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if type(error).__name__ == "NotImplemented":
        return UserError(f"ONNX Runtime has no kernel for an operator of {path.name}", why=reason)
    return MalformedModel(
        f"ONNX Runtime cannot load {path.name}", why=reason, hint="download it, or build the artifact, again"
    )


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
