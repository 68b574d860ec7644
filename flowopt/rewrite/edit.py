"""Edit: how a rewrite changes one site of a program.

Every rewrite builds new nodes beside the old ones and then claims ``replace(old, new)``: the new value
equals the old one. Nothing else rewires the graph, so each claim can be checked on its own, at the
rewrite's boundary, with any tensors; and intermediate values may change freely.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode

from flowopt.errors import InternalError
from flowopt.ir.constants import node_value
from flowopt.ir.float64 import raised_tensor
from flowopt.ir.metadata import inherit, recorded_tensor
from flowopt.program.program import Program


@dataclass(frozen=True, slots=True)
class Claim:
    """``new`` computes the value that ``old`` computed. Names of nodes of the graph after and before."""

    old: str
    new: str


class Edit:
    """The changes of one rewrite at one site.

    Attributes:
        program: what is edited.
        anchor: the site.
        claims: values that were replaced.
        sizes: sizes that were replaced by equal ones.
    """

    def __init__(self, program: Program, anchor: fx.Node, rewritten_by: str) -> None:
        self.program = program
        self.anchor = anchor
        self.claims: list[Claim] = []
        self.sizes: list[Claim] = []
        self._rewritten_by = rewritten_by
        self._point = anchor
        self._fake_mode = _fake_mode(program.graph)

    @contextlib.contextmanager
    def before(self, node: fx.Node) -> Iterator[None]:
        """New nodes stand before ``node``, and inherit its module path and source line."""
        previous, self._point = self._point, node
        try:
            yield
        finally:
            self._point = previous

    def constant(self, node: fx.Node) -> Tensor:
        """Value of a parameter-only node, in float64."""
        return self.program.constant(node)

    def parameter(self, name: str, value: Tensor, *, like: fx.Node) -> fx.Node:
        """Store a new tensor and return the node that reads it.

        Args:
            name: wanted name; a number is appended when it is taken.
            value: float64; it is rounded once, to the dtype of ``like`` (the twin keeps float64).
            like: node whose recorded dtype and device the stored tensor takes.
        """
        recorded = recorded_tensor(like)
        if recorded is None:
            raise InternalError(f"{like.name} has no recorded dtype")
        return self._stored(name, value, value.detach().to(recorded.dtype).contiguous())

    def stored(self, name: str, value: Tensor) -> fx.Node:
        """Store a tensor in its own dtype (the twin raises a floating one) and return the node that reads it."""
        return self._stored(name, value, value.detach().contiguous())

    def _stored(self, name: str, value: Tensor, rounded: Tensor) -> fx.Node:
        stored = raised_tensor(value.detach()).contiguous() if self.program.raised else rounded
        unique = _unique(name, self.program)
        self.program.tensors[unique] = stored
        with self.program.graph.inserting_before(self._point):
            node = self.program.graph.create_node("get_attr", unique)
        node.meta["val"] = self._fake_mode.from_tensor(rounded, static_shapes=True)
        inherit(node, self._point, self._rewritten_by)
        return node

    def evaluated(self, node: fx.Node) -> fx.Node:
        """Store what a parameter-only node gives, bit for bit, and return the node that reads it.

        Args:
            node: is evaluated as the program itself would, in its own dtypes.
        """
        recorded = recorded_tensor(node)
        if recorded is None:
            raise InternalError(f"{node.name} has no recorded value")
        value = node_value(node, self.program.read, {}, raised=self.program.raised)
        unique = _unique(node.name, self.program)
        # Memory of its own: a view would keep what it is made of. In the order of a dense one, which kernels go by: the
        # product with a transposed matrix adds in another order than that with a copy.
        self.program.tensors[unique] = value.detach().clone(memory_format=torch.preserve_format)
        with self.program.graph.inserting_before(self._point):
            made = self.program.graph.create_node("get_attr", unique)
        like = torch.empty(recorded.shape, dtype=recorded.dtype, device=recorded.device)
        made.meta["val"] = self._fake_mode.from_tensor(like, static_shapes=True)
        inherit(made, self._point, self._rewritten_by)
        return made

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A new operator call before the current point, with its recorded value propagated.

        Nothing that the operator asks of sizes is remembered: free dimensions stay free, for this program and for
        all others that were captured with it.
        """
        with self.program.graph.inserting_before(self._point):
            node = self.program.graph.call_function(target, args, kwargs)
        fake_args, fake_kwargs = fx.map_arg(args, _recorded), fx.map_arg(kwargs, _recorded)
        with _propagating(self._fake_mode):
            node.meta["val"] = target(*fake_args, **fake_kwargs)
        inherit(node, self._point, self._rewritten_by)
        return node

    def repeat(self, node: fx.Node, replacing: Mapping[fx.Node, fx.Node]) -> fx.Node:
        """The same call as ``node`` with some of its inputs replaced."""
        args = fx.map_arg(node.args, lambda n: replacing.get(n, n))
        kwargs = fx.map_arg(node.kwargs, lambda n: replacing.get(n, n))
        return self.call(node.target, *args, **kwargs)

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Claim that ``new`` equals ``old`` and let everybody who reads ``old`` read ``new``.

        Sizes may be replaced too, by equal sizes; they are compared here, and nothing is left to check.

        Raises:
            InternalError: dtype or rank differ, or a size that is known differs.
        """
        if _is_size(old) and _is_size(new):
            if str(old.meta["val"]) != str(new.meta["val"]):
                raise InternalError(f"{old.name} -> {new.name}: {old.meta['val']} became {new.meta['val']}")
            old.replace_all_uses_with(new, propagate_meta=False)
            self.sizes.append(Claim(old.name, new.name))
            return
        _require_same_type(old, new)
        old.replace_all_uses_with(new, propagate_meta=False)
        self.claims.append(Claim(old.name, new.name))


def _recorded(node: fx.Node) -> Any:
    if "val" not in node.meta:
        raise InternalError(f"{node.name} has no recorded value")
    return node.meta["val"]


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (int, torch.SymInt))


def _fake_mode(graph: fx.Graph) -> FakeTensorMode:
    for node in graph.nodes:
        mode = getattr(recorded_tensor(node), "fake_mode", None)
        if isinstance(mode, FakeTensorMode):
            return mode
    raise InternalError("no node of the graph has recorded metadata")


@contextlib.contextmanager
def _propagating(mode: FakeTensorMode) -> Iterator[None]:
    """Run operators on recorded values.

    With torch's Python dispatcher kernels see symbolic sizes, where those in C++ would ask for numbers. What they ask
    all the same is answered by the captured sizes, and must not become a guard: guards live in the shape environment,
    which all copies of a program share, and one that equates a size with a number ends its freedom everywhere.
    """
    guards = contextlib.nullcontext() if mode.shape_env is None else mode.shape_env.suppress_guards()
    with mode, enable_python_dispatcher(), guards, torch.no_grad():
        yield


def _unique(name: str, program: Program) -> str:
    candidate, number = name, 1
    while candidate in program.tensors:
        candidate, number = f"{name}_{number}", number + 1
    return candidate


def _require_same_type(old: fx.Node, new: fx.Node) -> None:
    before, after = recorded_tensor(old), recorded_tensor(new)
    if before is None or after is None:
        raise InternalError(f"{old.name} -> {new.name}: a recorded value is missing")
    same = before.dtype == after.dtype and before.dim() == after.dim()
    sizes = zip(before.shape, after.shape, strict=True) if same else ()
    if not same or any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in sizes):
        raise InternalError(
            f"{old.name} -> {new.name}: {before.dtype} {list(before.shape)} became {after.dtype} {list(after.shape)}"
        )
