"""ONNX artifacts that try to read other files, run programs or exhaust the machine.

``ONNX_FILES`` maps a name to a builder: given an empty folder, it makes an artifact folder in it and returns what to
hand to ``flowopt verify`` as the candidate. What the artifact must not read is ``canary(folder)``.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx
from onnx import TensorProto, helper

WIDTH: Final = 4
CANARY: Final = b"canary-" * 64
EXTERNAL: Final = TensorProto.EXTERNAL
INTERFACE: Final = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", WIDTH], "state": None}],
    "outputs": [{"name": "output", "dtype": "float32", "shape": ["batch", WIDTH], "state": None}],
    "dims": {"batch": {"minimum": 1, "maximum": 8}},
    "single": True,
}


@dataclass(slots=True)
class Scene:
    """A sound artifact before it is made hostile: output = x @ w with w in the weight file."""

    folder: Path
    canary: Path
    weights: Path
    model: Any
    content: bytes | None = None

    @property
    def tensor(self) -> Any:
        return self.model.graph.initializer[0]

    def entry(self, key: str) -> Any:
        return next(e for e in self.tensor.external_data if e.key == key)

    def write(self) -> None:
        content = self.model.SerializeToString() if self.content is None else self.content
        (self.folder / "model.onnx").write_bytes(content)


def canary(folder: Path) -> Path:
    """The file outside the artifact."""
    return folder / "outside" / "canary.data"


def sound(folder: Path) -> Scene:
    """The artifact in ``folder/artifact``, written, and the canary."""
    artifact = folder / "artifact"
    artifact.mkdir(parents=True)
    canary(folder).parent.mkdir()
    canary(folder).write_bytes(CANARY)
    data = bytes(range(WIDTH * WIDTH * 4))
    weights = artifact / f"weights.{hashlib.sha256(data).hexdigest()[:16]}.data"
    weights.write_bytes(data)
    x, y = (helper.make_tensor_value_info(name, 1, ["batch", WIDTH]) for name in ("x", "output"))
    tensor = external("w", weights.name, [WIDTH, WIDTH])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["output"])], "g", [x], [y], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    helper.set_model_props(model, {"flowopt.interface": json.dumps(INTERFACE)})
    scene = Scene(artifact, canary(folder), weights, model)
    scene.write()
    return scene


def external(name: str, location: str, dims: list[int], data_type: int = TensorProto.FLOAT, offset: int = 0) -> Any:
    """A float32 or int64 tensor whose data lie in another file."""
    tensor = TensorProto(name=name, data_type=data_type, dims=dims, data_location=EXTERNAL)
    size = math.prod(dims) * (8 if data_type == TensorProto.INT64 else 4)
    for key, text in (("location", location), ("offset", str(offset)), ("length", str(size))):
        tensor.external_data.add(key=key, value=text)
    return tensor


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def varint(value: int) -> bytes:
    """A protobuf number."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _located(location: str) -> Callable[[Scene], None]:
    def change(scene: Scene) -> None:
        scene.entry("location").value = location.replace("CANARY", str(scene.canary))

    return change


def _entry(key: str, value: str) -> Callable[[Scene], None]:
    return lambda scene: setattr(scene.entry(key), "value", value)


def _extra(key: str, value: str) -> Callable[[Scene], None]:
    return lambda scene: scene.tensor.external_data.add(key=key, value=value) and None


def _shaped(*dims: int) -> Callable[[Scene], None]:
    def change(scene: Scene) -> None:
        scene.tensor.dims[:] = dims

    return change


def _replaced_weights(make: Callable[[Scene], object]) -> Callable[[Scene], None]:
    def change(scene: Scene) -> None:
        scene.weights.unlink()
        make(scene)

    return change


def _linked_parent(scene: Scene) -> None:
    (scene.folder / "sub").symlink_to(scene.canary.parent)
    scene.entry("location").value = "sub/canary.data"


def _linked_parent_up(scene: Scene) -> None:
    (scene.folder / "sub").symlink_to(scene.canary.parent)
    scene.entry("location").value = "sub/../outside/canary.data"


def _linked_model(scene: Scene) -> None:
    target = scene.canary.parent / "model.onnx"
    os.replace(scene.folder / "model.onnx", target)
    (scene.folder / "model.onnx").symlink_to(target)


def _embedded(tensor: Any, **changes: Any) -> Any:
    """``tensor`` with data of its own."""
    plain = TensorProto(name=tensor.name, data_type=1, dims=[WIDTH, WIDTH], raw_data=bytes(WIDTH * WIDTH * 4))
    for key, value in changes.items():
        plain.ClearField(key) if value is None else setattr(plain, key, value)
    return plain


def _own_data(**changes: Any) -> Callable[[Scene], None]:
    return lambda scene: scene.tensor.CopyFrom(_embedded(scene.tensor, **changes))


def _leak(data_type: int = TensorProto.FLOAT) -> Any:
    """A tensor that would read the canary."""
    return external("leak", "../outside/canary.data", [1], data_type)


def _constant(scene: Scene, name: str, value: Any) -> None:
    scene.model.graph.node.append(helper.make_node("Constant", [], ["leaked"], **{name: value}))


def _sparse(values: Any, indices: Any, dims: list[int]) -> Any:
    return onnx.SparseTensorProto(values=values, indices=indices, dims=dims)


_VALUES = helper.make_tensor("values", TensorProto.FLOAT, [1], [1.0])
_INDICES = helper.make_tensor("indices", TensorProto.INT64, [1], [0])


def _sparse_initializer(make: Callable[[Scene], Any]) -> Callable[[Scene], None]:
    return lambda scene: scene.model.graph.sparse_initializer.append(make(scene))


def _inner_graph(tensor: Any) -> Any:
    out = helper.make_tensor_value_info("inner", 1, None)
    return helper.make_graph([helper.make_node("Identity", ["leak"], ["inner"])], "inner", [], [out], [tensor])


def _subgraph(scene: Scene, tensor: Any) -> None:
    branch = _inner_graph(tensor)
    node = helper.make_node("If", ["flag"], ["leaked"], then_branch=branch, else_branch=branch)
    scene.model.graph.initializer.append(helper.make_tensor("flag", TensorProto.BOOL, [], [True]))
    scene.model.graph.node.append(node)


def _function(scene: Scene) -> None:
    body = [helper.make_node("Constant", [], ["y"], value=_leak())]
    function = helper.make_function("local", "Leak", [], ["y"], body, [helper.make_opsetid("", 21)])
    scene.model.functions.append(function)
    scene.model.graph.node.append(helper.make_node("Leak", [], ["leaked"], domain="local"))


def _function_default(scene: Scene) -> None:
    body = [helper.make_node("Identity", ["x"], ["y"])]
    default = helper.make_attribute("a", _leak())
    imports = [helper.make_opsetid("", 21)]
    function = helper.make_function("local", "F", ["x"], ["y"], body, imports, attribute_protos=[default])
    scene.model.functions.append(function)


def _training(scene: Scene) -> None:
    scene.model.training_info.add().initialization.CopyFrom(_inner_graph(_leak()))


def _operator(domain: str, name: str) -> Callable[[Scene], None]:
    def change(scene: Scene) -> None:
        node = helper.make_node(name, ["x"], ["leaked"], domain=domain, embed_mode=0, main_context=1)
        node.attribute.append(helper.make_attribute("ep_cache_context", str(scene.canary)))
        scene.model.graph.node.append(node)
        scene.model.opset_import.append(helper.make_opsetid(domain, 1))

    return change


def _content(make: Callable[[bytes], bytes]) -> Callable[[Scene], None]:
    return lambda scene: setattr(scene, "content", make(scene.model.SerializeToString()))


def _deep(levels: int) -> bytes:
    """Graphs in attributes of nodes of graphs: lengths are known only from the inside out."""
    pieces, size = [], 0
    for _ in range(levels):
        for number in (6, 5, 1):
            head = varint(number << 3 | 2) + varint(size)
            pieces.append(head)
            size += len(head)
    pieces.append(varint(7 << 3 | 2) + varint(size))
    return b"".join(reversed(pieces))


def _second_graph(content: bytes) -> bytes:
    """Protobuf merges two graphs into one; the second brings the canary."""
    return content + field(7, field(5, _leak().SerializeToString()))


def _second_location(scene: Scene) -> None:
    tensor = scene.tensor.SerializeToString() + varint(14 << 3) + varint(0)
    graph = onnx.GraphProto()
    graph.CopyFrom(scene.model.graph)
    graph.ClearField("initializer")
    model = onnx.ModelProto()
    model.CopyFrom(scene.model)
    model.ClearField("graph")
    scene.content = model.SerializeToString() + field(7, graph.SerializeToString() + field(5, tensor))


def _report(make: Callable[[Scene, str], None]) -> Callable[[Scene], None]:
    """A hostile report beside a model that says nothing about itself."""

    def change(scene: Scene) -> None:
        scene.model.ClearField("metadata_props")
        make(scene, hashlib.sha256(scene.model.SerializeToString()).hexdigest())

    return change


def _report_text(text: str) -> Callable[[Scene], None]:
    return _report(lambda scene, sha256: _write_report(scene, text.replace("SHA256", sha256)))


def _write_report(scene: Scene, text: str) -> None:
    (scene.folder / "report.json").write_text(text)


def _large(path: Path) -> None:
    """1 TiB that takes no space on the disk."""
    path.touch()
    os.truncate(path, 1 << 40)


def _metadata(key: str, text: str) -> Callable[[Scene], None]:
    return lambda scene: helper.set_model_props(scene.model, {"flowopt.interface": json.dumps(INTERFACE)} | {key: text})


_DEEP_JSON = "[" * 100_000 + "]" * 100_000
_CHANGES: Final[dict[str, Callable[[Scene], object]]] = {
    "path-up": _located("../outside/canary.data"),
    "path-absolute": _located("CANARY"),
    "path-home": _located("~/canary.data"),
    "path-empty": _located(""),
    "path-dot": _located("."),
    "path-nul": _located("weights\0.data"),
    "path-backslash": _located("..\\outside\\canary.data"),
    "path-drive": _located("C:canary.data"),
    "path-url": _located("file://CANARY"),
    "path-memory-address": _located("*/_ORT_MEM_ADDR_/*"),
    "path-descriptor": _located("/proc/self/fd/0"),
    "path-model-itself": _located("model.onnx"),
    "path-no-text": _content(lambda b: b.replace(b"weights.", b"\xff\xfeights.")),
    "link": _replaced_weights(lambda s: s.weights.symlink_to(s.canary)),
    "link-hard": _replaced_weights(lambda s: s.weights.hardlink_to(s.canary)),
    "link-parent": _linked_parent,
    "link-parent-up": _linked_parent_up,
    "link-model": _linked_model,
    "file-pipe": _replaced_weights(lambda s: os.mkfifo(s.weights)),
    "file-folder": _replaced_weights(lambda s: s.weights.mkdir()),
    "file-missing": _replaced_weights(lambda s: None),
    "file-short": lambda s: s.weights.write_bytes(s.weights.read_bytes()[:-1]),
    "file-swapped": lambda s: s.weights.write_bytes(bytes(WIDTH * WIDTH * 4)),
    "offset-past-end": _entry("offset", "1000000"),
    "offset-negative": _entry("offset", "-64"),
    "offset-not-ascii": _entry("offset", "\u0661"),
    "length-huge": _entry("length", str(1 << 50)),
    "length-endless": _entry("length", "9" * 5000),
    "key-twice": _extra("location", "../outside/canary.data"),
    "key-basepath": _extra("basepath", "../outside"),
    "dims-huge": _shaped(1 << 40),
    "dims-huge-product": _shaped(1 << 40, 1 << 40),
    "dims-negative": _shaped(-WIDTH, -WIDTH),
    "dims-many": _shaped(*[1] * 100_000),
    "location-default": lambda s: s.tensor.ClearField("data_location"),
    "location-twice": _second_location,
    "location-no-entries": lambda s: s.tensor.ClearField("external_data"),
    "data-both": lambda s: setattr(s.tensor, "raw_data", bytes(64)),
    "data-short": _own_data(raw_data=bytes(60)),
    "data-long": _own_data(raw_data=bytes(68)),
    "data-none": _own_data(raw_data=None),
    "data-none-huge": lambda s: s.tensor.CopyFrom(TensorProto(name="w", data_type=1, dims=[1 << 40])),
    "data-type-unknown": _own_data(data_type=99),
    "attribute": lambda s: _constant(s, "value", _leak()),
    "attribute-list": lambda s: s.model.graph.node[0].attribute.append(helper.make_attribute("many", [_leak()])),
    "attribute-own-weights": lambda s: _constant(s, "value", external("leak", s.weights.name, [WIDTH])),
    "attribute-sparse": lambda s: _constant(s, "sparse_value", _sparse(_leak(), _INDICES, [WIDTH])),
    "sparse-values": _sparse_initializer(lambda s: _sparse(_leak(), _INDICES, [WIDTH])),
    "sparse-indices": _sparse_initializer(lambda s: _sparse(_VALUES, _leak(TensorProto.INT64), [WIDTH])),
    "sparse-bomb": _sparse_initializer(lambda s: _sparse(_VALUES, _INDICES, [1 << 40])),
    "subgraph": lambda s: _subgraph(s, _leak()),
    "subgraph-own-weights": lambda s: _subgraph(s, external("leak", s.weights.name, [WIDTH])),
    "function": _function,
    "function-default": _function_default,
    "training": _training,
    "empty": _content(lambda b: b""),
    "truncated": _content(lambda b: b[: len(b) // 2]),
    "endless-number": _content(lambda b: b"\x08" + b"\xff" * 1000),
    "length-beyond-file": _content(lambda b: b + varint(7 << 3 | 2) + varint(1 << 62)),
    "group": _content(lambda b: b + varint(7 << 3 | 3) + varint(7 << 3 | 4)),
    "graph-twice": _content(_second_graph),
    "deep": _content(lambda b: _deep(100_000)),
    "runtime-format": _content(lambda b: b"\x08\x0a\x12\x04ORTM" + b[2:]),
    "domain-unknown": _operator("evil.ops", "Open"),
    "operator-context": _operator("com.microsoft", "EPContext"),
    "operator-python": _operator("com.microsoft", "PyOp"),
    "operator-python-contrib": _operator("ai.onnx.contrib", "PyOp"),
    "report-deep": _report_text(_DEEP_JSON),
    "report-huge-number": _report_text('{"model_sha256": "SHA256", "interface": ' + "9" * 100_000 + "}"),
    "report-link": _report(lambda s, _: (s.folder / "report.json").symlink_to(s.canary)),
    "report-large": _report(lambda s, _: _large(s.folder / "report.json")),
    "report-foreign": _report_text('{"model_sha256": "0", "interface": {}}'),
    "report-interface": _report_text('{"model_sha256": "SHA256", "interface": {"inputs": [[]], "outputs": [7]}}'),
    "interface-deep": _metadata("flowopt.interface", _DEEP_JSON),
    "interface-no-json": _metadata("flowopt.interface", "{"),
    "names-no-json": _metadata("flowopt.output_names", "{"),
    "names-too-many": _metadata("flowopt.output_names", '["a", "b"]'),
}


def _builder(change: Callable[[Scene], object]) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        scene = sound(folder)
        change(scene)
        scene.write()
        return scene.folder

    return build


ONNX_FILES: Final[dict[str, Callable[[Path], Path]]] = {name: _builder(change) for name, change in _CHANGES.items()}
