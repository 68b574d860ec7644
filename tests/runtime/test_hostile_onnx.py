"""Every hostile ONNX artifact is refused, fast, with something to try, and without a look at the file outside."""

import os
import time
from pathlib import Path
from random import Random

import pytest
import torch
from onnx import helper

from flowopt.errors import MalformedModel, Untrusted, UserError
from flowopt.formats.onnx.containment import checked_onnx
from flowopt.runtime.artifact import Artifact
from flowopt.runtime.contents import checked_artifact
from flowopt.runtime.onnx_session import LEVELS, open_session
from flowopt.workflows.verify import verify
from tests.hostile.onnx_files import CANARY, ONNX_FILES, WIDTH, canary, external, sound
from tests.lowering import models
from tests.lowering.build import built

X = torch.ones(2, WIDTH)


def age(path: Path) -> None:
    """Set the time of access before that of writing: the next read of any library then moves it (relatime)."""
    os.utime(path, (0, time.time()))


def was_read(path: Path) -> bool:
    return path.stat().st_atime != 0


@pytest.fixture(scope="module")
def reads_are_seen(tmp_path_factory: pytest.TempPathFactory) -> bool:
    """Whether this file system records reads; where it is mounted with noatime, that part proves nothing."""
    control = tmp_path_factory.mktemp("control") / "file"
    control.write_bytes(CANARY)
    age(control)
    control.read_bytes()
    return was_read(control)


def test_the_sound_artifact_runs(tmp_path: Path) -> None:
    result = Artifact.open(sound(tmp_path).folder).run(X)
    assert isinstance(result, torch.Tensor) and result.shape == X.shape


@pytest.mark.parametrize("name", ONNX_FILES)
def test_it_is_refused(name: str, tmp_path: Path, reads_are_seen: bool) -> None:
    candidate = ONNX_FILES[name](tmp_path)
    age(canary(tmp_path))
    start = time.monotonic()
    with pytest.raises((MalformedModel, Untrusted)) as caught:
        Artifact.open(candidate).run(X)
    assert time.monotonic() - start < 10
    assert caught.value.hint and len(str(caught.value)) < 2000
    assert "canary-" not in str(caught.value)
    assert not (reads_are_seen and was_read(canary(tmp_path)))


@pytest.mark.parametrize("name", ["link-hard", "domain-unknown", "deep", "interface-deep", "names-no-json"])
def test_verify_refuses_it_too(name: str, tmp_path: Path) -> None:
    with pytest.raises((MalformedModel, Untrusted)) as caught:
        verify(built(models.attention).program, ONNX_FILES[name](tmp_path))
    assert caught.value.hint


def test_onnxruntime_gets_what_was_checked_without_a_file(tmp_path: Path) -> None:
    """Every type and size that weights can have, run after the file is gone."""
    scene = sound(tmp_path)
    sizes = {10: 16, 16: 16, 21: 4, 22: 4, 17: 8, 9: 8, 7: 64, 3: 8, 11: 64}
    data, wanted = bytearray(), {}
    graph = scene.model.graph
    graph.initializer[0].CopyFrom(external("w", scene.weights.name, [WIDTH, WIDTH]))
    for kind, bits in sizes.items():
        for count in (0, 5):
            size, name = -(-bits * count // 8), f"t{kind}.{count}"
            tensor = external(name, "extra", [count], kind, offset=len(data))
            next(e for e in tensor.external_data if e.key == "length").value = str(size)
            data += b"\x01" * size
            graph.initializer.append(tensor)
            graph.node.append(helper.make_node("Cast", [name], [f"{name}.out"], to=1))
            graph.output.append(helper.make_tensor_value_info(f"{name}.out", 1, None))
            wanted[f"{name}.out"] = count
    (scene.folder / "extra").write_bytes(data)
    scene.write()
    path = str(scene.folder / "model.onnx")
    for level in LEVELS:
        expected = open_session(path, level=level).run({"x": X})
        checked = checked_onnx(Path(path))
        for file in (scene.weights, scene.folder / "extra"):
            file.rename(file.with_suffix(".away"))
        runner = open_session(checked, level=level)
        checked.close()
        for file in (scene.weights, scene.folder / "extra"):
            file.with_suffix(".away").rename(file)
        found = runner.run({"x": X})
        assert {name: len(found[name]) for name in wanted} == wanted
        assert all(torch.allclose(found[n], expected[n], 0, 0, equal_nan=True) for n in expected)


def test_mutations_are_refused_or_load(tmp_path: Path) -> None:
    """Flipped bits, cut and doubled pieces: never another exception."""
    scene = sound(tmp_path)
    content = (scene.folder / "model.onnx").read_bytes()
    random = Random(7)
    loaded = 0
    for _ in range(300):
        mutated = bytearray(content)
        for _ in range(random.choice((1, 1, 1, 2, 8))):
            at = random.randrange(len(mutated))
            match random.randrange(4):
                case 0:
                    del mutated[at:]
                    mutated += content[:1] * (not mutated)
                case 1:
                    mutated[at : at + 4] = mutated[at : at + 8]
                case _:
                    mutated[at] ^= 1 << random.randrange(8)
        (scene.folder / "model.onnx").write_bytes(mutated)
        try:
            open_session(checked_artifact(scene.folder / "model.onnx"), threads=1)
            loaded += 1
        except (MalformedModel, Untrusted) as error:
            assert error.hint
        except UserError as error:
            assert "no kernel" in error.message
    assert 10 < loaded < 250
