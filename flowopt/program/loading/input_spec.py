"""Example inputs as text: ``1x128:int64[0..30521]``."""

import re
from dataclasses import dataclass
from typing import Final

from flowopt.errors import UserError

_FORM: Final = re.compile(
    r"(?P<sizes>\d+(?:x\d+)*|scalar)(?::(?P<dtype>[a-z]+\d*[a-z0-9]*))?(?:\[(?P<low>-?\d+)\.\.(?P<high>-?\d+)\])?"
)
_FLOATS: Final = ("float32", "float16", "bfloat16", "float64")
# With the smallest and largest value; numbers are drawn below the largest plus one, which int64 must hold as well.
_INTEGERS: Final = {
    "int64": (-(2**63), 2**63 - 2),
    "int32": (-(2**31), 2**31 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "int8": (-(2**7), 2**7 - 1),
    "uint8": (0, 2**8 - 1),
}
_OTHERS: Final = ("bool", "complex64", "complex128")
_HOW: Final = (
    "sizes joined by x, then the dtype, then the range of integers (both ends included): x=1x3x224x224, "
    "ids=1x128:int64[0..30521], mask=1x128:bool, t=scalar:float32"
)
_MOST_ELEMENTS: Final = 1 << 31


@dataclass(frozen=True, slots=True)
class InputSpec:
    """Sizes, dtype by torch's name, and for integers the smallest and largest value."""

    sizes: tuple[int, ...]
    dtype: str
    low: int = 0
    high: int = 1


def parse_input_spec(name: str, text: str) -> InputSpec:
    """One example input out of ``sizes[:dtype][[low..high]]``; float32 where no dtype is given.

    Raises:
        UserError: a text of another form, an unknown dtype, or a range that is empty, goes beyond the dtype, or is
            given for a dtype that has none.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise UserError(f"the shape {text!r} of {name!r} is not understood", hint=_HOW)
    sizes = () if found["sizes"] == "scalar" else tuple(int(size) for size in found["sizes"].split("x"))
    elements = 1
    for size in sizes:
        elements *= size
    if elements > _MOST_ELEMENTS:
        raise UserError(f"the shape {text!r} of {name!r} has {elements:,} elements", hint="give example sizes")
    dtype = found["dtype"] or ("int64" if found["low"] is not None else "float32")
    if dtype not in (*_FLOATS, *_INTEGERS, *_OTHERS):
        raise UserError(f"{name!r} has the unknown dtype {dtype!r}", hint=", ".join((*_FLOATS, *_INTEGERS, *_OTHERS)))
    if found["low"] is None:
        return InputSpec(sizes, dtype)
    low, high = int(found["low"]), int(found["high"])
    if dtype not in _INTEGERS or low > high:
        what = "is empty" if dtype in _INTEGERS else f"does not apply to {dtype}"
        raise UserError(f"the range {low}..{high} of {name!r} {what}", hint=_HOW)
    smallest, largest = _INTEGERS[dtype]
    if low < smallest or high > largest:
        raise UserError(
            f"the range {low}..{high} of {name!r} does not fit {dtype}", hint=f"stay within {smallest}..{largest}"
        )
    return InputSpec(sizes, dtype, low, high)
