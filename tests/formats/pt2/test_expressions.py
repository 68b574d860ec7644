import re
import string
from typing import Any

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._sympy import functions

from flowopt.errors import Untrusted
from flowopt.formats.pt2.expressions import clean_expression, clean_guard

S, T = (f"Symbol('{name}', positive=True, integer=True)" for name in ("s0", "s77"))
# As GraphModuleDeserializer gives them to sympy.
TABLE = {name: value for name, value in vars(functions).items() if isinstance(value, type)}
WRITTEN = (
    S,
    "Integer(4)",
    "Integer(-4)",
    "Symbol('u0', integer=True)",
    f"Add({S}, Integer(-1))",
    f"Mul(Integer(2), {S}, {T})",
    f"Pow({S}, Integer(2))",
    f"Pow({S}, Integer(-1))",
    f"Pow(Add({S}, Integer(1)), Integer(3))",
    f"Max(Integer(1), {S})",
    f"Min({S}, Add({T}, Integer(7)))",
    f"Mod({S}, Integer(8))",
    f"PythonMod({S}, Integer(8))",
    f"FloorDiv(Add({S}, Integer(1)), Integer(2))",
    f"CleanDiv({S}, Integer(2))",
    f"CeilToInt(IntTrueDiv({S}, Integer(2)))",
    f"ModularIndexing({S}, Integer(2), Integer(3))",
    f"ToFloat({S})",
    f"TruncToInt(Mul(Float('2.5', precision=53), ToFloat({S})))",
    f"Equality({S}, Integer(4))",
    f"Unequality({S}, Integer(1))",
    f"LessThan({S}, Integer(64))",
    f"StrictGreaterThan(Mul({S}, {T}), Integer(3))",
    f"And(GreaterThan({S}, Integer(2)), StrictLessThan({T}, Integer(9)))",
    f"Or(Eq({S}, {T}), Not(Ge({S}, Integer(3))))",
    "Rational(1, 2)",
    "true",
)
REFUSED = (
    "",
    "__import__('os')",
    "Symbol('s0').__class__",
    "Symbol('__import__')",
    "Symbol('s0', positive=exec)",
    "Symbol('s0'); 1",
    "lambda: 1",
    "[Integer(1)]",
    "Integer('1')",
    "open('x')",
    "S('x')",
    "Lambda(Integer(1))",
    "Integer(1))",
    "Integer(1",
    "(Integer(1)",
    "'a'",
    "s0(1)",
    "L['x'].size()[0]",
    "Pow(Integer(2), Pow(Integer(2), Integer(2)))",
    "Pow(Pow(Integer(2), Integer(16)), Integer(16))",
    "Pow((2 ** 16), Integer(16))",
    "Pow(LShift(Integer(1), Integer(16)), Integer(16))",
    "Pow(Integer(2), Integer(17))",
    "2 ** s0",
    "2 ** 2 ** 2",
    "9" * 21,
    "1 +" * 7_000 + " 1",
    "(" * 61 + "1" + ")" * 61,
    "Integer(\u0661)",
    "\u017fymbol('s0')",
)
GUARDS = (
    "L['x'].size()[0] == 4",
    "2 <= L['x'].size()[0] <= 64",
    "L['kwargs']['mask'][0].size()[1] == L['x'].size()[1]",
    "Eq(Mod(L['x'].size()[0], 8), 0)",
    "L['x'].size()[0] % 8 == 0 and not L['y'].size()[1] == 1 or L['x'].stride()[0] > 3",
    "-1 * L['x'].size()[0] // 2 + 3 * (1 - L['x'].size()[1]) != 0",
    "L['x'].numel() < 2 ** 10",
    "L['x'] == 3",
)
REFUSED_GUARDS = (
    "L",
    "L['x'].__class__",
    "L['x']._data",
    "L['x'].numpy()",
    "L['x'].size(0)",
    "L['x'].size()[s0]",
    "L['x']['a\\'']",
    "L[x]",
    "X['x'].size()[0] == 1",
    "print(L['x'])",
    "L['x'] if 1 else 2",
    "L['x'] := 1",
)


def evaluated(text: str) -> Any:
    return sympy.sympify(text, locals=dict(TABLE))


@pytest.mark.parametrize("text", WRITTEN)
def test_what_torch_writes_means_the_same_afterwards(text: str) -> None:
    clean = clean_expression(text, "here")
    assert evaluated(clean) == evaluated(text)
    assert clean_expression(clean, "here") == clean


def test_a_symbol_without_its_assumptions_gets_those_of_a_size() -> None:
    assert evaluated(clean_expression("2*s0 + 1", "here")) == evaluated(f"2*{S} + 1")


@pytest.mark.parametrize(("text", "value"), [("-2 ** 2", -4), ("7 - 2 - 1", 4), ("1 + 2 * 3", 7), ("2 * (1 + 2)", 6)])
def test_operators_bind_as_in_python(text: str, value: int) -> None:
    assert evaluated(clean_expression(text, "here")) == value


@pytest.mark.parametrize("text", REFUSED)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(Untrusted) as caught:
        clean_expression(text, "here")
    assert caught.value.hint and "here" in caught.value.why


@pytest.mark.parametrize("text", GUARDS)
def test_a_guard_means_the_same_afterwards(text: str) -> None:
    inputs = {"x": torch.zeros(4, 5), "y": torch.zeros(2, 1), "kwargs": {"mask": [torch.zeros(3, 5)]}}
    names: dict[str, Any] = {"L": inputs, "Eq": lambda a, b: a == b, "Mod": lambda a, b: a % b}
    if text == "L['x'] == 3":
        inputs["x"] = 3
    clean = clean_guard(text, "here")
    assert bool(eval(clean, names)) == bool(eval(text, names))


@pytest.mark.parametrize("text", [*REFUSED_GUARDS, *(t for t in REFUSED if not t.startswith("L["))])
def test_any_other_guard_is_refused(text: str) -> None:
    with pytest.raises(Untrusted):
        clean_guard(text, "here")


PIECES = st.one_of(
    st.sampled_from([*WRITTEN, *GUARDS, *REFUSED[:24], *REFUSED_GUARDS]),
    st.sampled_from(
        ["(", ")", ",", ".", "'", "[", "]", "Pow", "s0", "L", "__", "=", "-", "**", " not ", "1", "\\", "\n"]
    ),
    st.text(max_size=4),
)
ALLOWED = set(
    "Symbol Integer Float Rational Add Mul Pow Max Min Mod PythonMod FloorDiv CleanDiv CeilToInt CeilDiv IntTrueDiv "
    "ModularIndexing ToFloat TruncToInt LShift Equality Unequality LessThan StrictGreaterThan GreaterThan Not Or And "
    "StrictLessThan Eq Ge positive integer True False true false and or not L size stride storage_offset dim numel "
    "Identity".split()
)


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=6).map("".join))
def test_text_is_refused_or_written_with_known_names_alone(text: str) -> None:
    try:
        clean = clean_expression(text, "here")
    except Untrusted:
        return
    bare = re.sub(r"'[a-z_]{1,8}[0-9]{1,6}'|Float\('[-0-9.e+]*'\)|[0-9.]+e[+-]?[0-9]+", "", clean)
    assert set(re.findall(r"[A-Za-z_]\w*", bare)) <= ALLOWED
    assert set(bare) <= set(string.ascii_letters + string.digits + "_ ()+-*/%<>=!,&|~.")
