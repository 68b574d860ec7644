"""How a model nests its inputs and outputs: read as data, written down again with dictionaries and tuples alone.

torch looks types up by name, and imports whatever module the context of an enumeration names. Here an output class of
a library, such as transformers' ``ModelOutput``, becomes a dictionary of its fields: nothing has to be installed, and
the outputs keep their names.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from flowopt.errors import MalformedModel
from flowopt.formats.bounded_json import parse_json
from flowopt.formats.limits import Limits

_PROTOCOL: Final = 1
_MOST_KEY_CHARACTERS: Final = 1_000


def clean_treespec(text: str, fields_of: Mapping[str, Sequence[str]], where: str, limits: Limits) -> str:
    """A pytree specification, of dictionaries, tuples and leaves.

    Args:
        text: JSON, as ``torch.utils._pytree.treespec_dumps`` writes it.
        fields_of: field names of each named tuple, by its registered name.
        where: the place in the file, for messages.
        limits: of size and depth.

    Raises:
        MalformedModel: no such specification.
    """
    found = parse_json(text.encode(), what=where, limits=limits)
    if not isinstance(found, list) or len(found) != 2 or found[0] != _PROTOCOL:
        raise _malformed(where)
    return json.dumps([_PROTOCOL, _tree(found[1], fields_of, where, limits)])


def _tree(node: Any, fields_of: Mapping[str, Sequence[str]], where: str, limits: Limits) -> dict[str, Any]:
    if not isinstance(node, dict) or node.keys() != {"type", "context", "children_spec"}:
        raise _malformed(where)
    kind, context, children = node["type"], node["context"], node["children_spec"]
    if not isinstance(children, list):
        raise _malformed(where)
    if kind is None and context is None and not children:
        return {"type": None, "context": None, "children_spec": []}
    if not isinstance(kind, str) or not isinstance(context, (str, dict)):
        raise _malformed(where)
    clean = [_tree(child, fields_of, where, limits) for child in children]
    keys = _keys(_told(kind, context, fields_of, where, limits), len(clean))
    if keys is None:
        return {"type": "builtins.tuple", "context": "null", "children_spec": clean}
    return {"type": "builtins.dict", "context": json.dumps(keys), "children_spec": clean}


def _told(kind: str, context: Any, fields_of: Mapping[str, Sequence[str]], where: str, limits: Limits) -> Any:
    """What the context says: the bare name of a named tuple, an object for a defaultdict, JSON for all others."""
    if kind == "collections.namedtuple":
        return list(fields_of.get(context, ())) if isinstance(context, str) else None
    return parse_json(context.encode(), what=where, limits=limits) if isinstance(context, str) else context


def _keys(context: Any, count: int) -> list[str | int] | None:
    """One key per child where the context holds as many; None for a sequence."""
    if isinstance(context, dict):  # a defaultdict keeps its keys beside its factory
        context = context.get("dict_context")
    if isinstance(context, list) and context and isinstance(context[0], list):
        context = context[0]  # a dataclass: fields that are present, fields that are None
    if not isinstance(context, list) or len(context) != count or not context:
        return [] if context == [] and count == 0 else None
    keys = [key["name"] if isinstance(key, dict) and isinstance(key.get("name"), str) else key for key in context]
    if not all(isinstance(key, (str, int)) and _is_plain(key) for key in keys) or len(set(keys)) != count:
        return None
    return keys


def _is_plain(key: str | int) -> bool:
    return isinstance(key, int) or (key.isprintable() and len(key) <= _MOST_KEY_CHARACTERS)


def _malformed(where: str) -> MalformedModel:
    return MalformedModel(
        "the nesting of inputs or outputs is described in a form that torch.export does not write",
        why=where,
        hint="export the model again with torch.export.save",
    )
