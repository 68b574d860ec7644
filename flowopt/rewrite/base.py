"""Pass and RewritePass: what a kind of rewrite declares."""

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, ClassVar, Generic, TypeVar, dataclass_transform

from torch import fx

from flowopt.errors import InternalError
from flowopt.program.program import Program
from flowopt.rewrite.budget import Budget
from flowopt.rewrite.domain import Domain
from flowopt.rewrite.edit import Edit
from flowopt.rewrite.site import Site

PlanT = TypeVar("PlanT")


class Exactness(StrEnum):
    """How close a rewrite stays to the original; decides which gates judge it."""

    BITWISE = "bitwise"
    EXACT = "exact"
    EXACT_ON_DOMAIN = "exact-on-domain"
    APPROXIMATE = "approximate"


@dataclass_transform(frozen_default=True)
class RewritePass(ABC, Generic[PlanT]):
    """One kind of rewrite: looks at every anchor, decides with ``check``, edits with ``rewrite``.

    A subclass is a frozen dataclass whose fields are its options (the base class makes it one); a field with
    ``repr=False`` is given by Python alone and has no place in the text form of pipelines. ``check`` is pure:
    it returns a plan (decisions and node references, never tensors) or refuses. ``rewrite`` cannot fail; it is
    called again, with the same plan, on the program's float64 twin, so it takes tensors and dtypes from the
    ``Edit`` alone.

    Attributes:
        exactness: class of the rewrite.
        anchors: operators whose nodes are the pass's sites, all of them.
        codes: refusal codes beyond ``flowopt.rewrite.codes.CODES``, for passes of third parties.
    """

    exactness: ClassVar[Exactness]
    anchors: ClassVar[tuple[Any, ...]] = ()
    codes: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True)(cls)
        exactness = getattr(cls, "exactness", None)
        if exactness is Exactness.APPROXIMATE and cls.budget is RewritePass.budget:
            raise TypeError(f"{cls.__name__} is APPROXIMATE and declares no budget: define budget(self) -> Budget")
        if exactness is Exactness.EXACT_ON_DOMAIN and cls.domain is RewritePass.domain:
            raise TypeError(
                f"{cls.__name__} is EXACT_ON_DOMAIN and declares no domain: define domain(self, program) -> Domain"
            )

    @classmethod
    def pass_name(cls) -> str:
        """``FoldBatchNorm`` is ``fold-batch-norm``."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower()

    @classmethod
    def text_fields(cls) -> tuple[dataclasses.Field[Any], ...]:
        """The options that the text form of pipelines can name."""
        found = dataclasses.fields(cls)  # type: ignore[arg-type]  # __init_subclass__ made it a dataclass
        return tuple(f for f in found if f.repr)

    def text(self) -> str:
        """Name and the options that differ from their defaults, in the text form of pipelines."""
        options = [(f, getattr(self, f.name)) for f in self.text_fields()]
        changed = [f"{f.name}={value}" for f, value in options if value != f.default]
        return ":".join([self.pass_name(), *changed])

    def sites(self, program: Program) -> Iterable[fx.Node]:
        """The nodes that this pass looks at, in topological order: all nodes of its anchor operators."""
        return [n for n in program.graph.nodes if n.op == "call_function" and n.target in self.anchors]

    def budget(self) -> Budget:
        """What an APPROXIMATE pass may cost. Others have none."""
        raise InternalError(f"{self.text()} is {self.exactness.value} and has no budget")

    def domain(self, program: Program) -> Domain:
        """Where an EXACT_ON_DOMAIN pass is exact, by the inputs of ``program``. Others are exact everywhere."""
        raise InternalError(f"{self.text()} is {self.exactness.value} and has no domain")

    @abstractmethod
    def check(self, site: Site) -> PlanT:
        """Decide. Returns the plan, or refuses through ``site.require`` and ``site.refuse``."""

    @abstractmethod
    def rewrite(self, edit: Edit, plan: PlanT) -> str:
        """Carry out the plan and return what was done, in words."""
