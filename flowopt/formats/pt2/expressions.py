"""Shape expressions and guards: read by a small grammar and written down again, never passed on.

torch evaluates both as Python: an expression such as ``Mul(Integer(2), Symbol('s0', positive=True))`` through
``sympy.sympify``, a guard such as ``L['x'].size()[0] == 4`` through ``exec``. What leaves this module holds numbers,
symbols, sizes of inputs, and the functions and operators named here, and nothing else can be written in it.
"""

import re
from collections.abc import Callable, Iterator
from typing import Final

from flowopt.errors import Untrusted

# What torch.export writes: sympy's own constructors, and torch.utils._sympy.functions.
_FUNCTIONS: Final = frozenset(
    "Add Mul Pow Max Min Mod PythonMod FloorDiv CleanDiv CeilDiv ModularIndexing Where LShift RShift "
    "PowByNatural FloatPow FloatTrueDiv IntTrueDiv TruncToInt TruncToFloat RoundToInt FloorToInt CeilToInt ToFloat "
    "Identity IsNonOverlappingAndDenseIndicator Integer Float Rational Equality Unequality GreaterThan LessThan "
    "StrictGreaterThan StrictLessThan Eq Ne Ge Le Gt Lt And Or Not".split()
)
_POWERS: Final = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift"})
_HAS_POWER: Final = re.compile(r"Pow|LShift|\*\*")
_CONSTANTS: Final = frozenset({"true", "false", "True", "False", "oo", "int_oo"})
_ASSUMPTIONS: Final = frozenset("positive negative nonnegative nonpositive integer real finite zero nonzero".split())
_SIZE_METHODS: Final = frozenset({"size", "stride", "storage_offset", "dim", "numel"})
_SYMBOL: Final = re.compile(r"[a-z_]{1,8}[0-9]{1,6}")
_TOKEN: Final = re.compile(
    r"\s*(?:(?P<number>\d+\.\d+(?:e[+-]?\d+)?|\d+)|(?P<name>[A-Za-z_]\w*)|'(?P<text>[^'\\\n]*)'"
    r"|(?P<mark>\*\*|//|==|!=|<=|>=|[-+*/%<>()\[\],.=&|~]))",
    re.ASCII,
)
_BINARY: Final = {
    "or": 1,
    "and": 2,
    **dict.fromkeys(("==", "!=", "<", "<=", ">", ">="), 4),
    "|": 5,
    "&": 6,
    **dict.fromkeys("+-", 7),
    **dict.fromkeys(("*", "/", "//", "%"), 8),
    "**": 10,
}
_COMPARISON: Final = 4
_MOST_CHARACTERS: Final = 20_000
_MOST_DEPTH: Final = 60
_MOST_DIGITS: Final = 20
_LARGEST_EXPONENT: Final = 16
_LARGEST_EXPONENT_OF_SUMS: Final = 4
_ATOM: Final = re.compile(r"\w+|Symbol\([^()]*\)|Integer\(\w+\)|L[\w\[\]'.()]*")
_OWNER: Final = "do not load it: torch never writes such a text; ask for .safetensors or a new export"


def clean_expression(text: str, where: str) -> str:
    """A symbolic shape expression in canonical form.

    Args:
        text: as the file has it.
        where: the place in the file, for the message.

    Raises:
        Untrusted: it is no shape expression.
    """
    return _Parser(text, where, is_guard=False).whole()


def clean_guard(text: str, where: str) -> str:
    """A guard over input sizes in canonical form; arguments and errors as for ``clean_expression``."""
    return _Parser(text, where, is_guard=True).whole()


class _Parser:
    """Precedence climbing over a list of tokens; each method returns the text it has understood."""

    def __init__(self, text: str, where: str, *, is_guard: bool) -> None:
        self._text = text
        self._where = where
        self._is_guard = is_guard
        self._tokens = list(self._scanned())
        self._at = 0
        self._depth = 0

    def whole(self) -> str:
        result = self._expression(0)
        self._require(self._at == len(self._tokens))
        return result

    def _scanned(self) -> Iterator[tuple[str, str]]:
        text = self._text.strip()
        self._require(0 < len(text) <= _MOST_CHARACTERS)
        position = 0
        while position < len(text):
            found = _TOKEN.match(text, position)
            self._require(found is not None)
            assert found is not None
            yield str(found.lastgroup), found[str(found.lastgroup)]
            position = found.end()

    def _require(self, is_fine: bool) -> None:
        if is_fine:
            return
        kind = "guard" if self._is_guard else "shape expression"
        shown = self._text if len(self._text) <= 80 else self._text[:77] + "..."
        raise Untrusted(
            f"a {kind} of the file is something else",
            why=f"{self._where}: {shown!r}; torch would evaluate this text as Python, which can run any program",
            hint=_OWNER,
        )

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "")

    def _next(self) -> tuple[str, str]:
        token = self._peek()
        self._require(token[0] != "end")
        self._at += 1
        return token

    def _take(self, mark: str) -> None:
        self._require(self._next() == ("mark", mark))

    def _is_next(self, mark: str) -> bool:
        return self._peek() == ("mark", mark)

    def _expression(self, least: int) -> str:
        self._depth += 1
        self._require(self._depth <= _MOST_DEPTH)
        left = self._unary()
        before = 0
        while (precedence := self._operator()) > least:
            operator = self._next()[1]
            right = self._expression(precedence)
            if operator == "**":
                self._require(right.isdecimal() and len(right) < 3)
                self._require_finishable(left, int(right))
            if before == precedence == _COMPARISON:
                # "2 <= x <= 64" is one comparison of three.
                left = f"{left[:-1]} {operator} {right})"
            else:
                left = f"({left} {operator} {right})"
            before = precedence
        self._depth -= 1
        return left

    def _require_finishable(self, base: str, exponent: int) -> None:
        """A power that sympy can write out: of a symbol or number up to the 16th, of a sum up to the 4th."""
        largest = _LARGEST_EXPONENT if _ATOM.fullmatch(base) else _LARGEST_EXPONENT_OF_SUMS
        self._require(exponent <= largest and not _HAS_POWER.search(base))

    def _operator(self) -> int:
        kind, text = self._peek()
        return _BINARY.get(text, 0) if kind == "mark" or text in ("and", "or") else 0

    def _unary(self) -> str:
        kind, text = self._peek()
        if (kind, text) in (("mark", "-"), ("mark", "~"), ("name", "not")):
            self._at += 1
            return f"(not {self._expression(3)})" if text == "not" else f"({text}{self._expression(9)})"
        if self._is_next("("):
            self._at += 1
            inner = self._expression(0)
            self._take(")")
            return inner
        return self._atom()

    def _atom(self) -> str:
        kind, text = self._next()
        if kind == "number":
            self._require(len(text) <= _MOST_DIGITS)
            return text
        self._require(kind == "name")
        if text == "L":
            return self._input()
        if text in _CONSTANTS:
            return text
        if text == "Symbol":
            return self._symbol()
        if text in _FUNCTIONS:
            return self._call(text)
        self._require(_SYMBOL.fullmatch(text) is not None and not self._is_next("("))
        return f"Symbol('{text}', positive=True, integer=True)"

    def _call(self, function: str) -> str:
        self._take("(")
        if function == "Float":
            return self._float()
        arguments = self._sequence(lambda: self._expression(0))
        if function in _POWERS:
            exponent = re.fullmatch(r"(?:Integer\(\(?)?(-?\d+)\)*", arguments[-1])
            # A tower of powers could not be finished by any machine.
            self._require(len(arguments) == 2 and exponent is not None)
            assert exponent is not None
            self._require_finishable(arguments[0], abs(int(exponent[1])))
        return f"{function}({', '.join(arguments)})"

    def _float(self) -> str:
        """``Float('0.5', precision=53)``, after the parenthesis."""
        kind, text = self._next()
        self._require(kind in ("text", "number") and re.fullmatch(r"-?\d+(\.\d*)?(e[+-]?\d{1,3})?", text) is not None)
        while not self._is_next(")"):
            self._take(",")
            self._require(self._next()[1] in ("precision", "dps"))
            self._take("=")
            self._require(self._next()[0] == "number")
        self._take(")")
        return f"Float('{text}')"

    def _symbol(self) -> str:
        self._take("(")
        kind, name = self._next()
        self._require(kind == "text" and _SYMBOL.fullmatch(name) is not None)
        words = [f"'{name}'"]
        while not self._is_next(")"):
            self._take(",")
            kind, key = self._next()
            self._take("=")
            value = self._next()[1]
            self._require(key in _ASSUMPTIONS and value in ("True", "False"))
            words.append(f"{key}={value}")
        self._take(")")
        return f"Symbol({', '.join(words)})"

    def _input(self) -> str:
        """``L['x'][0].keys.size()[1]``, after the ``L``: sizes and numbers out of an input, and no other call."""
        self._require(self._is_guard)
        parts = ["L"]
        while self._is_next("[") or self._is_next("."):
            if self._next()[1] == "[":
                kind, text = self._next()
                self._require(kind == "number" or (kind == "text" and text.isprintable()))
                parts.append(f"[{text}]" if kind == "number" else f"['{text}']")
                self._take("]")
                continue
            kind, name = self._next()
            self._require(kind == "name" and not name.startswith("_"))
            parts.append(f".{name}")
            if self._is_next("("):
                self._require(name in _SIZE_METHODS)
                self._take("(")
                self._take(")")
                parts.append("()")
        self._require(len(parts) > 1)
        return "".join(parts)

    def _sequence(self, item: Callable[[], str]) -> list[str]:
        items = [item()]
        while self._is_next(","):
            self._at += 1
            items.append(item())
        self._take(")")
        return items
