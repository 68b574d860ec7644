"""Artifact: a folder that runs, whatever its target."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, final

from torch import Tensor

from flowopt.errors import MalformedModel, ModelNotFound, Untrusted, UserError
from flowopt.formats.digest import file_sha256
from flowopt.formats.limits import DEFAULT_LIMITS, Limits
from flowopt.formats.onnx.containment import CheckedOnnx
from flowopt.program.interface import Interface, TensorSpec
from flowopt.program.loading.trust import Trust
from flowopt.report.recurrence import Recurrence
from flowopt.report.stored_recurrence import stored_recurrence
from flowopt.runtime.contents import checked_artifact
from flowopt.runtime.huge_pages import in_huge_pages
from flowopt.runtime.interface import parsed_interface, parsed_interface_text
from flowopt.runtime.layout import INTERFACE_KEY, MODEL_FILES, ONNX_MODEL, TVM_MODEL, Committed, committed
from flowopt.runtime.onnx_session import LEVELS, Level, OnnxRunner, open_session
from flowopt.runtime.providers import CPU_PROVIDER, CUDA_PROVIDER, cuda_available
from flowopt.runtime.relax_module import RelaxRunner, open_relax
from flowopt.runtime.stream import Stream
from flowopt.runtime.torch_module import TorchRunner, open_exported

# Of a model that lost its report.
_TARGETS = {".onnx": "cpu", ".pt2": "torch", ".so": "tvm"}


class Runner(Protocol):
    """What every target's runner does."""

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


@final
class Artifact:
    """An opened artifact. Open one with ``Artifact.open``.

    The report counts only when it belongs to the model file (``model_sha256``). A lost or foreign report does not
    stop the artifact: the model itself carries its interface, ``report`` is then empty, and the session runs at
    level ``all``.

    Attributes:
        folder: where it lies.
        model_path: the model file.
        report: the report of exactly this model; empty when there is none.
        target: the target's name; without a report ``cpu``, ``torch`` or ``tvm``.
    """

    def __init__(
        self,
        found: Committed,
        provider: str | None,
        checked: CheckedOnnx | None = None,
        *,
        is_trusted: bool = False,
        threads: int | None = None,
        allow_tf32: bool = False,
        huge_pages: bool = True,
        check_weights: bool | None = None,
    ) -> None:
        self.folder = found.model.parent
        self.model_path = found.model
        self.report: dict[str, object] = dict(found.report or {})
        self.target = str(self.report.get("target", _TARGETS[found.model.suffix]))
        self._sha256 = found.sha256
        self._provider = provider
        self._checked = checked
        self._is_trusted = is_trusted
        self._threads, self._allow_tf32, self._huge_pages = threads, allow_tf32, huge_pages
        self._check_weights = check_weights
        self._runner: Runner | None = None
        self._interface: Interface | None = None

    @staticmethod
    def open(
        folder: str | Path,
        *,
        trust: Trust = "data",
        provider: str | None = None,
        check_weights: bool | None = None,
        limits: Limits = DEFAULT_LIMITS,
        threads: int | None = None,
        allow_tf32: bool = False,
        huge_pages: bool = True,
    ) -> "Artifact":
        """Open an artifact folder; the runtime starts with the first ``run``.

        Args:
            folder: the folder that holds ``model.onnx``, ``model.pt2`` or ``model.so``.
            trust: ``code`` loads ``model.so``, which is machine code, gives ``model.pt2`` to torch's loader, which runs
                what it says, and ``model.onnx`` to ONNX Runtime by its path, which then maps the weights; else flowopt
                reads the file, and ONNX Runtime gets what was checked from memory, where it keeps a copy of the
                weights.
            provider: ``cpu``, ``cuda`` or a name of ONNX Runtime's; None: CUDA for target ``cuda`` where there is
                a device, else the CPU.
            check_weights: compare the weights' content with their name; None: up to 1 GiB.
            limits: what reading the files may cost.
            threads: of ONNX Runtime within one operator, or of TVM in this process; None lets it choose.
            allow_tf32: let CUDA round the factors of float32 products to 10 bits, which is faster, and not what was
                verified.
            huge_pages: ask Linux to keep the weights of ``model.onnx`` in huge pages, which short inputs read 3 to 6 %
                faster; opening takes about a second more per gigabyte.

        Raises:
            ModelNotFound: no such folder.
            MalformedModel: no artifact, or a damaged one.
            Untrusted: a model that needs a library or runs a program, or is one.
        """
        folder = Path(folder)
        if not folder.exists():
            raise ModelNotFound(f"no artifact at {folder}")
        if (folder / ONNX_MODEL).is_symlink():
            raise MalformedModel(f"{folder / ONNX_MODEL} is a link", hint="copy the files themselves: cp -rL")
        found = committed(folder) if folder.is_dir() else None
        if found is None:
            raise MalformedModel(
                f"{folder} is not an artifact",
                why=f"it holds neither {' nor '.join(MODEL_FILES)}",
                hint="give the folder that flowopt optimize wrote with -o",
            )
        if found.model.suffix == ".onnx":
            checked = checked_artifact(found.model, check_hash=check_weights, limits=limits)
            if checked.sha256 != found.sha256:
                raise _replaced(found.model)
            return Artifact(
                found,
                provider,
                checked,
                is_trusted=trust == "code",
                threads=threads,
                allow_tf32=allow_tf32,
                huge_pages=huge_pages,
            )
        if found.model.name == TVM_MODEL:
            if trust != "code":
                raise Untrusted(
                    f"{found.model} is machine code, which runs when it is opened",
                    why="no reader can tell what a compiled library does",
                    hint="if you built it, or trust who did",
                    retry=(("--trust", "code"),),
                )
            return Artifact(found, provider, threads=threads, check_weights=check_weights)
        artifact = Artifact(found, provider)
        if trust != "code":
            artifact._runner = open_exported(found.model, trust=trust, limits=limits)
        return artifact

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Name, dtype and shape of every input; state can be left out of a call."""
        return self._its_interface().inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Name, dtype and shape of every output."""
        return self._its_interface().outputs

    @property
    def dims(self) -> Mapping[str, tuple[int, int | None]]:
        """Smallest and largest size of every free dimension, both included; None: unbounded."""
        return self._its_interface().dims

    def run(self, /, *args: object, **kwargs: object) -> Tensor | dict[str, Tensor]:
        """Run the model: inputs by position (state excluded) or by name.

        Returns:
            The tensor, when the original returned one bare tensor; else every output by its dotted name.

        Raises:
            UserError: the inputs do not fit; the message says what the model takes.
            MissingDependency: the target's runtime is not installed.
        """
        interface = self._its_interface()
        return interface.result(self.run_named(interface.bind(args, kwargs)))

    def run_named(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every output by name, for inputs by name, unchecked."""
        return self._its_runner().run(inputs)

    @property
    def recurrence(self) -> Recurrence | None:
        """What it carries from token to token, where it was lowered as a step; else None."""
        return stored_recurrence(self.report, what=str(self.folder / "report.json")) if self.report else None

    def stream(self, **sizes: int) -> Stream:
        """A sequence that goes through a step token by token, from its beginning.

        Args:
            sizes: of the free dimensions, such as ``batch``.

        Raises:
            UserError: the artifact is no step, what it carries has a free size that is not given, or one is given
                that it has not.
        """
        recurrence = self.recurrence
        if recurrence is None:
            raise UserError(
                f"{self.folder} is no step: it takes whole sequences",
                hint="flowopt optimize MODEL --form recurrent makes a step of a causal model",
            )
        return Stream(self.run_named, recurrence, sizes, interface=self._its_interface())

    def _its_interface(self) -> Interface:
        if self._interface is None:
            section = self.report.get("interface")
            self._interface = parsed_interface(section) if section is not None else self._stored_interface()
        return self._interface

    def _stored_interface(self) -> Interface:
        runner = self._its_runner()
        if isinstance(runner, (TorchRunner, RelaxRunner)):
            return runner.interface
        if isinstance(runner, OnnxRunner) and INTERFACE_KEY in runner.metadata:
            return parsed_interface_text(runner.metadata[INTERFACE_KEY])
        raise MalformedModel(
            f"{self.model_path} has no report and does not say what it takes",
            why="flowopt did not write it",
            hint="run it with onnxruntime, or build it with flowopt optimize",
        )

    def _its_runner(self) -> Runner:
        if self._runner is None:
            self._runner = self._opened()
        return self._runner

    def _opened(self) -> Runner:
        if self.model_path.name == TVM_MODEL:
            if file_sha256(self.model_path) != self._sha256:
                raise _replaced(self.model_path)
            return open_relax(
                self.model_path,
                threads=self._threads,
                device=self._tvm_device(),
                check_weights=self._check_weights,
            )
        if self._checked is None:
            return open_exported(self.model_path, trust="code")
        if not self.model_path.is_file() or file_sha256(self.model_path) != self._sha256:
            raise _replaced(self.model_path)
        model = self._checked.path if self._is_trusted else self._checked
        providers = self._providers()
        with in_huge_pages(is_wanted=self._huge_pages and providers[0] == CPU_PROVIDER):
            runner = open_session(
                model,
                level=self._level(),
                providers=providers,
                threads=self._threads,
                allow_tf32=self._allow_tf32,
            )
        self._checked.close()
        return runner

    def _level(self) -> Level:
        runtime = self.report.get("runtime", {})
        wanted = runtime.get("level", "all") if isinstance(runtime, Mapping) else None
        for level in LEVELS:
            if level == wanted:
                return level
        raise MalformedModel(
            f"report.json asks for optimisation level {wanted!r}; known are {', '.join(LEVELS)}",
            hint="build the artifact again",
        )

    def _tvm_device(self) -> str | None:
        if self._provider not in (None, "cpu", "cuda"):
            raise UserError(f"provider {self._provider!r}: a library of TVM's runs on cpu or cuda")
        return self._provider

    def _providers(self) -> tuple[str, ...]:
        wanted = self._provider
        if wanted is None:
            wanted = "cuda" if self.target == "cuda" and cuda_available() else "cpu"
        names = {"cpu": (CPU_PROVIDER,), "cuda": (CUDA_PROVIDER, CPU_PROVIDER)}
        if wanted not in names and not wanted.endswith("ExecutionProvider"):
            raise UserError(f"provider {wanted!r}", hint="use cpu, cuda, or a name of ONNX Runtime's")
        return names.get(wanted, tuple(dict.fromkeys((wanted, CPU_PROVIDER))))


def _replaced(model: Path) -> MalformedModel:
    return MalformedModel(f"{model} was replaced since it was opened", hint="open it again")
