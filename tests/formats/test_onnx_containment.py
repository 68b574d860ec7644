"""An .onnx file reads its own folder and nothing else; what it asks for beyond is a question of trust."""

import os
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from flowopt.errors import MalformedModel, Untrusted
from flowopt.formats.onnx.containment import SERVED_DOMAINS, checked_onnx
from tests.hostile.onnx_files import ONNX_FILES, external, sound

REACHES_OUT = [
    *("path-up", "path-absolute", "path-empty", "path-dot", "path-nul", "path-backslash", "path-drive", "path-url"),
    *("path-memory-address", "path-descriptor", "link", "link-hard", "link-parent", "link-parent-up"),
    *("attribute", "attribute-list", "attribute-sparse", "sparse-values", "sparse-indices"),
    *("subgraph", "function", "function-default", "training"),
]


@pytest.mark.parametrize("name", REACHES_OUT)
def test_what_reaches_out_is_untrusted(name: str, tmp_path: Path) -> None:
    with pytest.raises(Untrusted) as caught:
        checked_onnx(ONNX_FILES[name](tmp_path) / "model.onnx")
    assert caught.value.hint


def test_weights_may_lie_in_a_folder_below(tmp_path: Path) -> None:
    scene = sound(tmp_path)
    (scene.folder / "a" / "b").mkdir(parents=True)
    os.replace(scene.weights, scene.folder / "a" / "b" / "w.bin")
    scene.entry("location").value = "a/b/w.bin"
    del scene.tensor.external_data[1:]
    scene.write()
    checked = checked_onnx(scene.folder / "model.onnx")
    assert {name: file.size for name, file in checked.external.items()} == {"a/b/w.bin": 64}
    assert checked.content() == (scene.folder / "model.onnx").read_bytes()


def test_what_was_checked_is_what_is_read(tmp_path: Path) -> None:
    scene = sound(tmp_path)
    checked = checked_onnx(scene.folder / "model.onnx")
    before = scene.weights.read_bytes()
    scene.weights.unlink()
    scene.weights.symlink_to(scene.canary)
    assert bytes(checked.external[scene.weights.name].data or b"") == before
    with (scene.folder / "model.onnx").open("r+b") as file:
        file.write(b"\x08\x09")
    with pytest.raises(MalformedModel, match="changed"):
        checked.content()


def test_weights_of_no_bytes_pass(tmp_path: Path) -> None:
    scene = sound(tmp_path)
    (scene.folder / "none").write_bytes(b"")
    scene.model.graph.initializer.append(external("nothing", "none", [0, 1 << 40]))
    scene.write()
    assert checked_onnx(scene.folder / "model.onnx").external["none"].data is None


def test_functions_of_the_model_are_no_foreign_operators(tmp_path: Path) -> None:
    scene = sound(tmp_path)
    body = [helper.make_node("Abs", ["x"], ["y"])]
    imports = [helper.make_opsetid("", 21)]
    scene.model.functions.append(helper.make_function("pkg.torch", "F", ["x"], ["y"], body, imports))
    scene.model.graph.node.append(helper.make_node("F", ["x"], ["z"], domain="pkg.torch"))
    scene.write()
    checked_onnx(scene.folder / "model.onnx")
    scene.model.graph.node.append(helper.make_node("G", ["x"], ["u"], domain="pkg.torch"))
    scene.write()
    with pytest.raises(Untrusted, match="pkg.torch::G"):
        checked_onnx(scene.folder / "model.onnx")


def test_served_domains_are_those_of_onnx_and_onnxruntime() -> None:
    from onnxruntime.capi import onnxruntime_pybind11_state as runtime

    schemas: Any = [*onnx.defs.get_all_schemas_with_history(), *runtime.get_all_operator_schema()]
    assert {schema.domain for schema in schemas} | {"ai.onnx"} == SERVED_DOMAINS


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"\x18\x00\x00\x00ORTM", "own format"),
        (b"\x08\x0a", "no graph"),
    ],
)
def test_what_is_taken_for_onnx_is_named(content: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(MalformedModel, match=match) as caught:
        checked_onnx(tmp_path / "m.onnx")
    assert caught.value.hint


def test_a_model_that_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "link.onnx").symlink_to(sound(tmp_path).folder / "model.onnx")
    (tmp_path / "folder.onnx").mkdir()
    for name in ("pipe", "link", "folder", "none"):
        with pytest.raises(MalformedModel, match=f"{name}.onnx") as caught:
            checked_onnx(tmp_path / f"{name}.onnx")
        assert caught.value.hint


def test_nothing_stays_open_after_a_refusal(tmp_path: Path) -> None:
    model = ONNX_FILES["file-short"](tmp_path) / "model.onnx"
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for _ in range(20):
        with pytest.raises(MalformedModel):
            checked_onnx(model)
    assert before in (0, len(os.listdir("/proc/self/fd")))
