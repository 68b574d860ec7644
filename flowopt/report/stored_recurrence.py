"""Read the recurrence of a report back."""

from flowopt.report.json_value import JsonValue
from flowopt.report.recurrence import CarriedState, Recurrence


def stored_recurrence(value: object, *, what: str) -> Recurrence | None:
    """The section ``recurrence`` of a report, without its verdict; None where there is none.

    Raises:
        MalformedModel: values of another kind.
    """
    root = JsonValue(value, what)["recurrence"]
    if root.value is None:
        return None
    axes = root["token_axes"]
    return Recurrence(
        sequence=root["sequence"].text(),
        token_axes={name: axes[name].integer() for name in axes.mapping()},
        states=tuple(_state(one) for one in root["states"].items()),
        longest=None if root["longest"].value is None else root["longest"].integer(),
    )


def _state(one: JsonValue) -> CarriedState:
    shape = tuple(size.value if isinstance(size.value, str) else size.integer() for size in one["shape"].items())
    return CarriedState(one["input"].text(), one["output"].text(), shape, one["dtype"].text(), one["of"].text())
