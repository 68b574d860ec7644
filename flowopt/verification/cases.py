"""The named input cases of level ``quick``, over every free dimension."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, fx

from flowopt.analysis.input_roles import Kind, Role, input_role
from flowopt.ir.metadata import recorded_tensor
from flowopt.program.program import Dim, Program
from flowopt.verification import regimes

_PRIMES = (3, 5, 7, 11, 13, 17, 19, 23)


@dataclass(frozen=True, slots=True)
class Case:
    """One set of inputs.

    Attributes:
        name: what it stands for.
        sizes: free dimension to size.
        inputs: one tensor per input, in the program's dtypes.
        overrides: node name to a tensor that takes the node's place: float regimes for models that read integers
            only. Lowered files cannot take them.
    """

    name: str
    sizes: dict[str, int]
    inputs: dict[str, Tensor]
    overrides: dict[str, Tensor] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name and sizes: ``prime[batch=3,sequence=5]``."""
        sizes = ",".join(f"{name}={size}" for name, size in self.sizes.items())
        return f"{self.name}[{sizes}]" if sizes else self.name


def quick_cases(program: Program, seed: int) -> tuple[Case, ...]:
    """Four named cases; a fifth where the model reads integers only.

    ``traced`` (captured sizes, normal), ``smallest`` (every dimension at its minimum, negative numbers, edge ids),
    ``prime`` (odd and distinct sizes, rows of mixed scale), ``special`` (batch 2 and captured size plus one, spikes,
    a NaN and an infinity), and ``injected``: the sizes of ``special`` with those numbers in the place of the first
    float tensor.
    """
    roles = {i.name: input_role(program, i.name) for i in program.inputs if i.state is None}
    plans = (
        ("traced", {d.name: d.traced for d in program.dims}, regimes.normal),
        ("smallest", {d.name: d.minimum for d in program.dims}, regimes.negative),
        ("prime", _primes(program.dims), regimes.mixed_rows),
        ("special", _neighbours(program.dims), regimes.spikes),
    )
    cases = [_case(program, name, sizes, regime, roles, seed) for name, sizes, regime in plans]
    if not any(r.kind is Kind.FEATURES for r in roles.values()):
        injected = _injected(program, cases[-1], seed)
        cases += [injected] if injected is not None else []
    return tuple(cases)


def _case(
    program: Program,
    name: str,
    sizes: dict[str, int],
    regime: regimes.Regime,
    roles: dict[str, Role],
    seed: int,
) -> Case:
    generator = torch.Generator().manual_seed(seed)
    inputs: dict[str, Tensor] = {}
    for one in program.inputs:
        if one.state is not None:
            inputs[one.name] = program.tensors[one.state]
            continue
        value = recorded_tensor(program.node(one.name))
        assert value is not None
        shape = program.concrete_shape(value, sizes)
        made = (
            _integers(name, roles[one.name], shape, generator)
            if _is_discrete(roles[one.name])
            else regime(shape, generator)
        )
        inputs[one.name] = made.to(one.dtype)
    return Case(name, sizes, inputs)


def _is_discrete(role: Role) -> bool:
    return role.kind is not Kind.FEATURES


def _integers(case: str, role: Role, shape: tuple[int, ...], generator: Generator) -> Tensor:
    if role.kind is Kind.MASK:
        return _mask(case, shape, generator)
    if role.kind is Kind.ADDITIVE_MASK:
        return torch.where(_mask(case, shape, generator) > 0, 0.0, torch.finfo(torch.float32).min)
    edges = torch.tensor([role.low, role.high - 1])
    if case == "smallest" or (case == "special" and role.kind is Kind.INDICES):
        count = int(torch.Size(shape).numel())
        return edges[torch.arange(count) % 2].reshape(shape)
    return torch.randint(role.low, max(role.high, role.low + 1), shape, generator=generator)


def _mask(case: str, shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Ones, right padding, left padding, or one visible position; never a row that hides everything.

    A fully masked row has no defined answer: attention kernels give zeros, an average, or NaN.
    """
    if not shape or case == "smallest":
        return torch.ones(shape, dtype=torch.int64)
    length = shape[-1]
    rows = int(torch.Size(shape[:-1]).numel())
    visible = torch.randint(1, length + 1, (rows, 1), generator=generator)
    positions = torch.arange(length).expand(rows, length)
    if case == "special":
        mask = positions == visible - 1
        mask = mask | (torch.arange(rows).unsqueeze(-1) % 2 == 0)
    else:
        mask = positions >= length - visible if case == "prime" else positions < visible
    return mask.to(torch.int64).reshape(shape)


def _primes(dims: Iterable[Dim]) -> dict[str, int]:
    return {d.name: _within(d, _PRIMES[i % len(_PRIMES)]) for i, d in enumerate(dims)}


def _neighbours(dims: Iterable[Dim]) -> dict[str, int]:
    return {d.name: _within(d, 2 if i == 0 else d.traced + 1) for i, d in enumerate(dims)}


def _within(dim: Dim, size: int) -> int:
    return max(dim.minimum, size if dim.maximum is None else min(size, dim.maximum))


def _injected(program: Program, case: Case, seed: int) -> Case | None:
    node = _first_float(program)
    if node is None:
        return None
    value = recorded_tensor(node)
    assert value is not None
    try:
        shape = program.concrete_shape(value, case.sizes)
    except TypeError:
        return None  # a data-dependent size
    generator = torch.Generator().manual_seed(seed + 1)
    made = regimes.spikes(shape, generator).to(value.dtype)
    return Case("injected", case.sizes, case.inputs, {node.name: made})


def _first_float(program: Program) -> fx.Node | None:
    """The first float tensor that is computed from an input."""
    dependent: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op == "placeholder" or any(n in dependent for n in node.all_input_nodes):
            dependent.add(node)
            value = recorded_tensor(node)
            if node.op == "call_function" and value is not None and value.is_floating_point() and value.dim() > 1:
                return node
    return None
