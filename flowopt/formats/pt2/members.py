"""What each member of an export archive is for, and which ones are refused."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from flowopt.errors import MalformedModel, Untrusted

Extent = tuple[int, int]
_SMALL: Final = ("archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id", "version")
_CODE: Final = (
    ("data/aotinductor/", "compiled code", "torch would load it as a shared library"),
    ("data/executorch/", "an ExecuTorch program", "it is code for another runtime"),
    ("data/constants/custom_obj_", "an object of a custom class", "it is a pickle"),
    ("data/constants/opaque_obj_", "an opaque object", "it is a pickle"),
)
_ASK: Final = "ask the owner for .safetensors, .onnx or a new export"
_TRUST: Final = f"if you trust its author; else {_ASK}"


@dataclass(frozen=True, slots=True)
class Members:
    """Offset and length of every part that is read, in bytes.

    Attributes:
        model: the model's name inside the archive.
        graph: the graph's JSON text.
        weights_config, constants_config: JSON texts that describe the tensors.
        weights, constants: records by name.
        extra: files that the exporter added, by name.
        small: version and byte order.
    """

    model: str
    graph: Extent
    weights_config: Extent
    constants_config: Extent
    weights: Mapping[str, Extent]
    constants: Mapping[str, Extent]
    extra: Mapping[str, Extent]
    small: Mapping[str, Extent]


def sorted_members(extents: Mapping[str, Extent]) -> Members:
    """Sort an archive's members by their purpose; sample inputs, which are pickles, are left alone.

    Raises:
        MalformedModel: no archive of one model, a missing or an unknown member.
        Untrusted: a member that is code, or that torch reads as a pickle.
    """
    roots = {name.partition("/")[0] for name in extents}
    if len(roots) != 1:
        raise MalformedModel(f"the archive has {len(roots)} top folders; torch writes one", hint=_EXPORT)
    members = {name.partition("/")[2]: extent for name, extent in extents.items()}
    model = _model_name(members)
    config = f"data/weights/{model}_weights_config.json", f"data/constants/{model}_constants_config.json"
    groups: dict[str, dict[str, Extent]] = {"data/weights/weight_": {}, "data/constants/tensor_": {}, "extra/": {}}
    small: dict[str, Extent] = {}
    for name, extent in members.items():
        group = next((prefix for prefix in groups if name.startswith(prefix)), None)
        if group is not None:
            groups[group][name.removeprefix("extra/") if group == "extra/" else name.rpartition("/")[2]] = extent
        elif name in _SMALL:
            small[name] = extent
        elif name not in (*config, f"models/{model}.json", f"data/sample_inputs/{model}.pt"):
            _refuse(name)
    missing = [name for name in (*config, "archive_format", "archive_version") if name not in members]
    if missing:
        raise MalformedModel(f"the archive lacks {missing[0]!r}", hint=_EXPORT)
    weights, constants, extra = groups.values()
    return Members(
        model, members[f"models/{model}.json"], members[config[0]], members[config[1]], weights, constants, extra, small
    )


_EXPORT: Final = "export the model again with torch.export.save"


def _model_name(members: Mapping[str, Extent]) -> str:
    found = [name[len("models/") : -len(".json")] for name in members if name.startswith("models/")]
    if any(name == "serialized_exported_program.json" for name in members):
        raise Untrusted(
            "the archive is of an older torch, which stored weights as pickles",
            why="reading a pickle can run any program on this machine",
            hint="export the model again with torch 2.11 or newer",
        )
    if len(found) != 1:
        _refuse_code(members)
        raise MalformedModel(
            f"the archive holds {len(found)} models{': ' + ', '.join(sorted(found)[:5]) if found else ''}",
            hint="save each model alone: torch.export.save(torch.export.export(model, args), path)",
        )
    return found[0]


def _refuse_code(members: Mapping[str, Extent]) -> None:
    for name in members:
        if any(name.startswith(prefix) for prefix, _, _ in _CODE):
            _refuse(name)


def _refuse(name: str) -> None:
    for prefix, what, why in _CODE:
        if name.startswith(prefix):
            raise Untrusted(f"it holds {what}", why=f"{name}: {why}", hint=_ASK)
    if name.endswith((".pt", ".pkl", ".pickle")):
        raise Untrusted(
            f"{json.dumps(name)} is stored as a pickle",
            why="reading a pickle can run any program on this machine; flowopt does not do that by default",
            hint=_TRUST,
            retry=(("--trust", "code"),),
        )
    raise MalformedModel(f"the archive has an unknown member {json.dumps(name)}", hint=_EXPORT)
