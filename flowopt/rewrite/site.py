"""Site: one place where a pass could fire, and how the pass says no."""

from collections.abc import Mapping
from typing import NoReturn

from torch import Tensor, fx

from flowopt.errors import InternalError
from flowopt.ir.constants import is_parameter_only
from flowopt.ir.metadata import module_path, recorded_tensor, source_line
from flowopt.program.program import Program
from flowopt.report.sites import Applied, Refusal
from flowopt.rewrite.codes import CODES


class RefusedError(Exception):
    """Raised by ``Site.refuse``, caught by the driver: an expected outcome, not a failure."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class Site:
    """One anchor node in its program, as ``check`` sees it. Nothing here changes the program."""

    def __init__(self, program: Program, node: fx.Node, codes: Mapping[str, str] | None = None) -> None:
        self.program = program
        self.node = node
        self._codes = CODES | dict(codes or {})

    def require(self, condition: bool, code: str, message: str, node: fx.Node | None = None) -> None:
        """Refuse unless ``condition`` holds.

        Args:
            condition: what must hold.
            code: one of ``flowopt.rewrite.codes.CODES`` or of the pass's own ``codes``.
            message: the guard in words, with this site's names and values.
            node: the node that stands in the way, when it is not the anchor.
        """
        if not condition:
            self.refuse(code, message, node)

    def refuse(self, code: str, message: str, node: fx.Node | None = None) -> NoReturn:
        """Refuse this site."""
        if code not in self._codes:
            raise InternalError(f"refusal code {code!r} is in no vocabulary; use one of {sorted(self._codes)}")
        raise RefusedError(
            Refusal(
                site=self.node.name,
                module=module_path(self.node),
                source=source_line(self.node),
                code=code,
                message=message,
                node=(node or self.node).name,
            )
        )

    def recorded(self, node: fx.Node) -> Tensor:
        """The fake tensor of a node; refuses ``missing-metadata`` when there is none."""
        value = recorded_tensor(node)
        if value is None:
            self.refuse("missing-metadata", f"{node.name} has no recorded shape and dtype", node)
        return value

    def constant(self, node: object, what: str) -> Tensor:
        """Value of a parameter-only argument in float64; refuses ``not-constant`` otherwise."""
        if not isinstance(node, fx.Node) or not is_parameter_only(node):
            self.refuse(
                "not-constant",
                f"{what} ({node}) is not a stored tensor",
                node if isinstance(node, fx.Node) else None,
            )
        return self.program.constant(node)

    def applied(self, summary: str) -> Applied:
        """The record of a rewrite at this site."""
        return Applied(self.node.name, module_path(self.node), source_line(self.node), summary)
