"""Libraries of ``--target tvm``: they need no torch, say what they are, and refuse where they would fail."""

import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from flowopt.errors import MalformedModel, ModelNotFound, Untrusted, UserError
from flowopt.runtime.artifact import Artifact
from flowopt.runtime.layout import TVM_MODEL
from flowopt.runtime.processor import instruction_sets, lacking_here
from flowopt.runtime.relax_library import RelaxLibrary
from flowopt.runtime.relax_metadata import read_metadata
from flowopt.runtime.relax_module import open_relax
from tests.lowering.tvm.small_library import Compiled, compiled

ROOT = Path(__file__).resolve().parents[2]
X = torch.linspace(-2, 2, 5 * 24).view(5, 24)
MASK = torch.tensor([True, True, False, True, True])
_WITHOUT = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnxruntime"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import numpy as np
from flowopt.runtime.relax_library import RelaxLibrary
inputs = dict(np.load(sys.argv[2]))
np.savez(sys.argv[3], **RelaxLibrary.open(sys.argv[1]).run(inputs))
"""


@pytest.fixture
def one() -> Compiled:
    return compiled()


@pytest.fixture
def copy(one: Compiled, tmp_path: Path) -> Path:
    return Path(shutil.copytree(one.folder, tmp_path / "copy"))


def wanted(one: Compiled) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = one.module.double()(X.double(), MASK)["y"]
    one.module.float()
    return found


def test_runs_where_neither_torch_nor_onnxruntime_can_be_imported(one: Compiled, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=X.numpy(), mask=MASK.numpy())
    command = [sys.executable, "-c", _WITHOUT, str(one.folder), str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    subprocess.run(command, check=True, cwd=ROOT)
    found = np.load(tmp_path / "out.npz")
    assert np.abs(found["y"] - wanted(one).numpy()).max() < 3e-6
    assert (found["same"] == X.numpy()).all()


def test_what_a_caller_does_to_outputs_changes_nothing_else(one: Compiled) -> None:
    runner = open_relax(one.folder)
    given = X.clone()
    first = runner.run({"x": given, "mask": MASK})
    kept = {name: tensor.clone() for name, tensor in first.items()}
    for name, tensor in first.items():
        tensor.fill_(77)
        for other in first.keys() - {name}:
            assert torch.equal(first[other], kept[other]), f"{other} shares memory with {name}"
        tensor.copy_(kept[name])
    for tensor in first.values():
        tensor.fill_(77)
    assert torch.equal(given, X)
    again = runner.run({"x": given, "mask": MASK})
    assert all(torch.equal(again[name], kept[name]) for name in kept)
    assert torch.equal(again["steps"], torch.arange(5))


def test_an_output_that_a_kernel_makes_is_not_copied(one: Compiled) -> None:
    metadata = read_metadata(one.folder / TVM_MODEL)
    names = [each["name"] for each in metadata.interface["outputs"]]
    assert metadata.fresh <= {names.index("y"), names.index("again")}


def test_threads_that_call_at_once_get_their_own_results(one: Compiled) -> None:
    runner = open_relax(one.folder)
    inputs = [{"x": X * (1 + at), "mask": MASK} for at in range(4)]
    alone = [runner.run(each)["y"] for each in inputs]
    found: dict[int, bool] = {}

    def call(at: int) -> None:
        found[at] = all(torch.equal(runner.run(inputs[at])["y"], alone[at]) for _ in range(50))

    threads = [threading.Thread(target=call, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(4), True)


def test_inputs_at_any_address_and_stride_are_taken(one: Compiled) -> None:
    runner = open_relax(one.folder)
    shifted = torch.empty(X.numel() + 1)[1:].view_as(X).copy_(X)
    strided = torch.empty(24, 5).t().copy_(X)
    for given in (shifted, strided):
        assert torch.equal(runner.run({"x": given, "mask": MASK})["y"], runner.run({"x": X, "mask": MASK})["y"])


def test_the_library_says_what_it_is_without_being_loaded(one: Compiled) -> None:
    metadata = read_metadata(one.folder / TVM_MODEL)
    assert [each["name"] for each in metadata.interface["inputs"]] == ["x", "mask"]
    assert metadata.weights is not None
    assert (one.folder / metadata.weights).is_file()
    assert metadata.device == "cpu"


def test_machine_code_is_opened_only_when_trusted(one: Compiled) -> None:
    with pytest.raises(Untrusted) as caught:
        Artifact.open(one.folder)
    assert caught.value.retry == (("--trust", "code"),)
    assert Artifact.open(one.folder, trust="code").inputs[0].name == "x"


def test_a_lost_report_is_replaced_by_what_the_library_says(copy: Path) -> None:
    (copy / "report.json").unlink()
    artifact = Artifact.open(copy, trust="code")
    assert artifact.target == "tvm"
    assert str(artifact.inputs[0]) == "x: float32[batch, 24]"


def test_an_artifact_that_took_the_place_of_an_open_one_gives_its_own_numbers(copy: Path) -> None:
    before = Artifact.open(copy, trust="code")
    assert isinstance(before.run(X, MASK), dict)
    metadata = read_metadata(copy / TVM_MODEL)
    # Another library at the same path: the loader must not hand out the one that it has.
    foreign = (copy / TVM_MODEL).read_bytes().replace(metadata.version.encode(), b"9.9.9"[: len(metadata.version)])
    (copy / TVM_MODEL).unlink()
    (copy / TVM_MODEL).write_bytes(foreign)
    assert RelaxLibrary.open(copy).metadata.version == "9.9.9"
    with pytest.raises(MalformedModel, match="replaced"):
        Artifact._opened(before)


def test_a_processor_that_lacks_an_instruction_is_refused_before_anything_runs(copy: Path) -> None:
    metadata = read_metadata(copy / TVM_MODEL)
    feature = next(one for one in metadata.features if len(one) > 3)
    unknown = "q" * len(feature)
    data = (copy / TVM_MODEL).read_bytes().replace(f'"{feature}"'.encode(), f'"{unknown}"'.encode())
    (copy / TVM_MODEL).write_bytes(data)
    with pytest.raises(UserError, match=f"this processor lacks {unknown}"):
        RelaxLibrary.open(copy)


def test_a_processor_has_the_instructions_of_the_levels_below_it() -> None:
    tvm = pytest.importorskip("tvm")
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    if " avx2 " not in flags:
        pytest.skip("the levels are those of x86-64 with AVX2")
    assert "avx2" in instruction_sets(tvm, "x86-64-v3")
    assert lacking_here(tvm, instruction_sets(tvm, "x86-64-v3")) == []
    assert lacking_here(tvm, ["avx2", "amx-nothing"]) == ["amx-nothing"]


def test_linux_tells_of_instructions_where_tvm_has_no_llvm() -> None:
    tvm = pytest.importorskip("tvm")
    if not Path("/proc/cpuinfo").is_file() or " avx2 " not in Path("/proc/cpuinfo").read_text():
        pytest.skip("no x86-64 with AVX2 under Linux")

    class RuntimeAlone:
        @staticmethod
        def get_global_func(name: str, allow_missing: bool) -> None:
            return None

    own = instruction_sets(tvm, str(tvm.target.codegen.llvm_get_system_cpu()))
    assert lacking_here(RuntimeAlone, own) == []
    assert lacking_here(RuntimeAlone, ["avx2", "amx-nothing"]) == ["amx-nothing"]


@pytest.mark.parametrize("damage", ["missing", "short", "changed"])
def test_damaged_weights_are_refused(copy: Path, damage: str) -> None:
    weights = copy / str(read_metadata(copy / TVM_MODEL).weights)
    data = weights.read_bytes()
    weights.unlink()
    if damage == "short":
        weights.write_bytes(data[: len(data) // 2])
    if damage == "changed":
        weights.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(MalformedModel):
        RelaxLibrary.open(copy)


def test_what_flowopt_did_not_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        RelaxLibrary.open(tmp_path)
    (tmp_path / TVM_MODEL).write_bytes(b"\x7fELF and nothing else")
    with pytest.raises(MalformedModel, match="does not say what it is"):
        RelaxLibrary.open(tmp_path)
    (tmp_path / TVM_MODEL).write_bytes(b'{"flowopt.compiled": 1, "interface": [')
    with pytest.raises(MalformedModel, match="damaged"):
        RelaxLibrary.open(tmp_path)


def test_arrays_that_do_not_fit_are_refused_with_what_the_model_takes(one: Compiled) -> None:
    library = RelaxLibrary.open(one.folder)
    with pytest.raises(UserError, match="missing: mask"):
        library.run({"x": X.numpy()})
    with pytest.raises(UserError, match="unknown: z"):
        library.run({"x": X.numpy(), "mask": MASK.numpy(), "z": MASK.numpy()})
    for wrong in (X.double(), X[0], X[:, :5]):
        with pytest.raises(UserError, match=re.escape("the model takes x: float32[batch, 24]")):
            library.run({"x": wrong.numpy(), "mask": MASK.numpy()})
    with pytest.raises(UserError, match="dimension 'batch' is 5 in 'x' and 3 in 'mask'"):
        library.run({"x": X.numpy(), "mask": MASK[:3].numpy()})
    with pytest.raises(UserError, match="the model takes 1 to 64"):
        library.run({"x": X.repeat(13, 1).numpy(), "mask": MASK.repeat(13).numpy()})


def test_a_library_for_the_cpu_does_not_run_on_cuda(one: Compiled) -> None:
    with pytest.raises(UserError, match="compiled for cpu, not for cuda"):
        RelaxLibrary.open(one.folder, device="cuda")
