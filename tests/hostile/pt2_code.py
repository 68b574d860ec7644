"""Archives that make ``torch.export.load``, or what it returns, run Python or native code of the file's choice.

The code creates one empty file, the marker, in the folder that the builder is given.
"""

import io
import json
import pickle
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from tests.hostile.pt2_archive import (
    CONSTANTS,
    FIRST_NODE,
    MODEL,
    SAMPLES,
    WEIGHTS,
    marker,
    parts,
    touch,
    with_graph,
    with_json,
    with_members,
)

ENUM_MODULE: Final = "a_module_beside_the_archive"
_LEAF: Final[dict[str, Any]] = {"type": None, "context": None, "children_spec": []}


class _Payload:
    """An object whose pickle evaluates an expression."""

    def __init__(self, expression: str) -> None:
        self.expression = expression

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return eval, (self.expression,)


def pickled(folder: Path) -> bytes:
    """A pickle of ``torch.save`` that creates the marker."""
    file = io.BytesIO()
    torch.save(_Payload(touch(folder)), file)
    return file.getvalue()


def in_names(folder: Path) -> str:
    """An expression that creates the marker, without dots and quotes: for places where a name is expected."""
    return f"exec(bytes({list(touch(folder).encode())}))"


def _weight_pickle(folder: Path) -> Path:
    config = json.loads(parts()[WEIGHTS])
    config["config"]["layer.bias"] |= {"use_pickle": True, "tensor_meta": None}
    return with_members(folder, {WEIGHTS: json.dumps(config).encode(), "data/weights/weight_1": pickled(folder)})


def _constant(folder: Path, name: str, content: bytes, use_pickle: bool = True) -> Path:
    payload = {"path_name": name, "is_param": False, "use_pickle": use_pickle, "tensor_meta": None}
    config = json.dumps({"config": {"thing": payload}}).encode()
    return with_members(folder, {CONSTANTS: config, f"data/constants/{name}": content})


def _opaque_constant(folder: Path) -> Path:
    return _constant(folder, "opaque_obj_0", pickle.dumps(_Payload(touch(folder))))


def _pickled_constant(folder: Path) -> Path:
    return _constant(folder, "tensor_0", pickled(folder))


def _custom_object(folder: Path) -> Path:
    return _constant(folder, "custom_obj_0", pickle.dumps(_Payload(touch(folder))))


def _member(folder: Path, name: str) -> Path:
    return with_members(folder, {name: pickled(folder)})


def _sizes(folder: Path, field: str, name: str = "x") -> Path:
    def edit(_: Any, graph: Any) -> None:
        expression = {"as_expr": {"expr_str": touch(folder), "hint": {"as_int": 2}}}
        meta = graph["tensor_values"][name]
        meta[field] = expression if field == "storage_offset" else [expression, *meta[field][1:]]

    return with_graph(folder, edit)


def _sym_values(folder: Path, field: str) -> Path:
    return with_graph(
        folder, lambda _, graph: graph[field].update(s={"as_expr": {"expr_str": touch(folder), "hint": None}})
    )


def _hint(folder: Path) -> Path:
    def edit(_: Any, graph: Any) -> None:
        graph["tensor_values"]["x"]["sizes"][0]["as_expr"]["hint"] = {"as_expr": {"expr_str": touch(folder)}}

    return with_graph(folder, edit)


def _weight_sizes(folder: Path) -> Path:
    def edit(config: Any) -> None:
        expression = {"as_expr": {"expr_str": touch(folder), "hint": None}}
        config["config"]["layer.bias"]["tensor_meta"]["sizes"] = [expression]

    return with_json(folder, WEIGHTS, edit)


def _guard(folder: Path, text: str) -> Path:
    return with_graph(
        folder,
        lambda document, _: document.update(
            guards_code=[text.replace("TOUCH", touch(folder)).replace("MARKER", str(marker(folder)))]
        ),
    )


def _range(folder: Path) -> Path:
    return with_graph(
        folder,
        lambda document, _: document["range_constraints"].update({touch(folder): {"min_val": 1, "max_val": 2}}),
    )


def _target(folder: Path, target: str, *arguments: Any) -> Path:
    def edit(_: Any, graph: Any) -> None:
        filled = [{"as_string": str(marker(folder))} if one is marker else one for one in arguments]
        named = [{"name": "", "arg": one, "kind": 1} for one in filled]
        graph["nodes"][0].update(target=target, inputs=named or graph["nodes"][0]["inputs"])

    return with_graph(folder, edit)


def _operator_argument(folder: Path) -> Path:
    return _target(
        folder,
        "torch.ops.higher_order.wrap_with_set_grad_enabled",
        {"as_bool": False},
        {"as_operator": "torch.os.system"},
        {"as_string": f"touch {marker(folder)}"},
    )


def _subgraph(folder: Path, name: str = "submod_0", target: str = "torch.os.system") -> Path:
    def edit(_: Any, graph: Any) -> None:
        inner = json.loads(json.dumps(graph).replace(f'"{FIRST_NODE}"', '"inner"'))
        inner["nodes"][0]["target"] = target
        tensors = [{"name": "", "arg": one, "kind": 1} for one in graph["inputs"]]
        head = [{"as_bool": False}, {"as_graph": {"name": name, "graph": inner}}]
        graph["nodes"][0].update(
            target="torch.ops.higher_order.wrap_with_set_grad_enabled",
            inputs=[*({"name": "", "arg": one, "kind": 1} for one in head), *tensors],
            is_hop_single_tensor_return=False,
        )

    return with_graph(folder, edit)


def _subgraph_name(folder: Path) -> Path:
    return _subgraph(folder, f's"+str({in_names(folder)})+"', "torch.ops.aten.linear.default")


def _subgraph_method(folder: Path) -> Path:
    return _subgraph(folder, "to_folder", "torch.ops.aten.linear.default")


def _renamed(folder: Path, old: str, new: str) -> Path:
    """One name, everywhere in the document."""
    text = parts()[MODEL].decode().replace(json.dumps(old), json.dumps(new))
    return with_members(folder, {MODEL: text.encode()})


def _input_name(folder: Path) -> Path:
    return _renamed(folder, "x", f"x=[{in_names(folder)}]")


def _node_name(folder: Path) -> Path:
    return _renamed(folder, FIRST_NODE, f"y = {in_names(folder)}; {FIRST_NODE}")


def _parameter_name(folder: Path, name: str = "") -> Path:
    old, new = '"layer.weight"', json.dumps(name or f'layer."+str({in_names(folder)})+"')
    return with_members(folder, {m: parts()[m].decode().replace(old, new).encode() for m in (MODEL, WEIGHTS)})


def _argument_name(folder: Path) -> Path:
    def edit(_: Any, graph: Any) -> None:
        target = "torch.ops.higher_order.wrap_with_set_grad_enabled"
        arguments = [{"name": f"a=[{in_names(folder)}],b", "arg": {"as_bool": False}, "kind": 2}]
        graph["nodes"][0].update(target=target, inputs=arguments)

    return with_graph(folder, edit)


def _signature(folder: Path, **changes: Any) -> Path:
    return with_graph(
        folder,
        lambda document, _: document["graph_module"]["module_call_graph"][0]["signature"].update(changes),
    )


def _forward_name(folder: Path) -> Path:
    return _signature(folder, forward_arg_names=[f"x=[{in_names(folder)}]"])


def in_spec(keyword: str) -> str:
    """The nesting of a model with one input by name."""
    by_name = {"type": "builtins.dict", "context": json.dumps([keyword]), "children_spec": [_LEAF]}
    positional = {"type": "builtins.tuple", "context": "null", "children_spec": []}
    return json.dumps([1, {"type": "builtins.tuple", "context": "null", "children_spec": [positional, by_name]}])


def _keyword_name(folder: Path) -> Path:
    return _signature(folder, in_spec=in_spec(f"x=[{in_names(folder)}]"), forward_arg_names=None)


def _enumeration(folder: Path, field: str = "in_spec") -> Path:
    (folder / f"{ENUM_MODULE}.py").write_text(f"{touch(folder)}\n")
    key = {"__enum__": True, "fqn": f"{ENUM_MODULE}:Colour", "name": "RED"}
    node = {"type": "builtins.dict", "context": json.dumps([key]), "children_spec": [_LEAF]}
    return _signature(folder, **{field: json.dumps([1, node])})


def _library(folder: Path, name: str) -> Path:
    """A shared library whose constructor creates the marker; without a compiler, bytes that no loader takes."""
    compiler = shutil.which("cc")
    library = folder / "library.so"
    library.write_bytes(b"\x7fELF" + bytes(60))
    if compiler is not None:
        source = folder / "library.c"
        source.write_text(
            "#include <stdio.h>\n__attribute__((constructor)) static void run(void)\n"
            f'{{ FILE *file = fopen("{marker(folder)}", "w"); if (file) fclose(file); }}\n'
        )
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    metadata = b'{"AOTI_DEVICE_KEY": "cpu"}'
    folder_of = name.rpartition("/")[0]
    return with_members(folder, {name: library.read_bytes(), f"{folder_of}/w_metadata.json": metadata})


def _older(folder: Path) -> Path:
    members = dict.fromkeys(parts())
    older = {"serialized_exported_program.json": parts()[MODEL], "version": b"8.1"}
    return with_members(folder, {**members, **older, "serialized_state_dict.pt": pickled(folder)})


_X: Final = {"as_tensor": {"name": "x"}}
_TARGETS: Final[dict[str, tuple[Any, ...]]] = {
    "hub": ("torch.hub.load", {"as_string": "owner/name"}),
    "os-system": ("torch.os.system", {"as_string": "true"}),
    "cpp-extension": ("torch.utils.cpp_extension.load", {"as_string": "name"}),
    "native": ("torch._C._jit_set_profiling_mode", {"as_bool": True}),
    "attrgetter": ("_operator.attrgetter", {"as_string": "__class__"}),
    "methodcaller": ("_operator.methodcaller", {"as_string": "touch"}),
    "call": ("_operator.call", {"as_string": "x"}),
    "math-loader": ("math.__loader__.load_module", {"as_string": "antigravity"}),
    "from-file": ("torch.ops.aten.from_file.default", marker, {"as_bool": True}, {"as_int": 1}),
    "save": ("torch.ops.aten.save.default", {"as_tensor": {"name": "x"}}, marker),
    "path": ("torch.ops.../../torch.os.system",),
    "extension": ("#namespace:operator",),
    "dunder": ("torch.ops.aten.linear.__class__",),
    "dunder-packet": ("torch.ops.aten.__class__.mro",),
    "load-library": ("torch.ops.load_library", marker),
    "unnamed-library": ("torch.ops.unknown.call.default", marker),
    "script-only": ("torch.ops.aten.get_gradients.default",),
    "resize": ("torch.ops.aten.resize_.default", {"as_tensor": {"name": "x"}}, {"as_ints": [1 << 40]}),
    # Kernels that trust sizes and indices: what they corrupt in memory is first seen with other numbers than zeros.
    "alias": ("torch.ops.aten._reshape_alias.default", _X, {"as_ints": [8]}, {"as_ints": [1]}),
    "indices": ("torch.ops.aten._convert_indices_from_coo_to_csr.default", _X, {"as_int": 4}),
    "segments": ("torch.ops.aten.segment_reduce.default", _X, {"as_string": "sum"}),
    "gradient": ("torch.ops.aten.embedding_dense_backward.default", _X),
    "optimizer": ("torch.ops.aten._fused_sgd_.default", {"as_tensors": [{"name": "x"}]}),
    "long-name": (f"torch.ops.{'a' * 1_000_000}.b.default",),
    "set": ("torch.ops.aten.set_.source_Tensor", {"as_tensor": {"name": "x"}}, {"as_tensor": {"name": "x"}}),
}
_GUARDS: Final = {
    "call": "TOUCH",
    "and": "L['x'].size()[0] >= 1 and TOUCH",
    "index": "L['x'][TOUCH]",
    "attribute": "L['x'].__class__.__init__.__globals__['os'].system('true')",
    "method": "L['x'].numpy().tofile('MARKER')",
}

CODE_FILES: Final[dict[str, Callable[[Path], Path]]] = {
    "weight-pickle": _weight_pickle,
    "constant-pickle": _pickled_constant,
    "constant-opaque": _opaque_constant,
    "constant-custom": _custom_object,
    "legacy-weights": partial(_member, name="data/weights/model.pt"),
    "legacy-constants": partial(_member, name="data/constants/model.pt"),
    "older-archive": _older,
    "expression-sizes": partial(_sizes, field="sizes"),
    "expression-strides": partial(_sizes, field="strides"),
    "expression-offset": partial(_sizes, field="storage_offset"),
    "expression-unused": partial(_sizes, field="sizes", name=FIRST_NODE),
    "expression-integer": partial(_sym_values, field="sym_int_values"),
    "expression-boolean": partial(_sym_values, field="sym_bool_values"),
    "expression-float": partial(_sym_values, field="sym_float_values"),
    "expression-hint": _hint,
    "expression-weight": _weight_sizes,
    "range-name": _range,
    **{f"guard-{name}": partial(_guard, text=text) for name, text in _GUARDS.items()},
    "operator-argument": _operator_argument,
    "operator-subgraph": _subgraph,
    "name-input": _input_name,
    "name-node": _node_name,
    "name-node-spelling": lambda folder: _renamed(folder, FIRST_NODE, "\uff58"),
    "name-parameter": _parameter_name,
    "name-parameter-dunder": partial(_parameter_name, name="__class__.__init__.__globals__"),
    "name-parameter-method": partial(_parameter_name, name="to_folder"),
    "name-argument": _argument_name,
    "name-forward": _forward_name,
    "name-keyword": _keyword_name,
    "name-subgraph": _subgraph_name,
    "name-subgraph-method": _subgraph_method,
    "nesting-enumeration": _enumeration,
    "library": partial(_library, name="data/aotinductor/model/w.so"),
    "executorch": partial(_member, name="data/executorch/model.pte"),
}


def _operator_file(target: str, *arguments: Any) -> Callable[[Path], Path]:
    return lambda folder: _target(folder, target, *arguments)


CODE_FILES.update({f"operator-{name}": _operator_file(*call) for name, call in _TARGETS.items()})


def enumeration(folder: Path) -> Path:
    """A key of the output names a module to import; flowopt takes the key's name alone."""
    return _enumeration(folder, "out_spec")


def sample_inputs(folder: Path) -> Path:
    """A pickle where torch looks for sample inputs; flowopt never reads them, so the archive is harmless to it."""
    return with_members(folder, {SAMPLES: pickled(folder)})
