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
    plans = (
        ("traced", {d.name: d.traced for d in program.dims}, regimes.normal),
        ("smallest", {d.name: d.minimum for d in program.dims}, regimes.negative),
        ("prime", _primes(program.dims), regimes.mixed_rows),
        ("special", _neighbours(program.dims), regimes.spikes),
    )
    cases = [case_of(program, name, sizes, regime, seed) for name, sizes, regime in plans]
    if not any(r.kind is Kind.FEATURES for r in _roles(program).values()):
        injected = _injected(program, cases[-1], seed)
        cases += [injected] if injected is not None else []
    return tuple(cases)


def case_of(program: Program, name: str, sizes: dict[str, int], regime: regimes.Regime, seed: int) -> Case:
    """One case: features in a regime, ids and masks by the case's name, state as stored in the case ``traced``.

    Args:
        program: whose inputs are made.
        name: of the case; ``smallest``, ``prime`` and ``special`` have ids and masks of their own.
        sizes: every free dimension by name.
        regime: of floating features.
        seed: of the values.
    """
    roles = _roles(program)
    generator = torch.Generator().manual_seed(seed)
    inputs: dict[str, Tensor] = {}
    for one in program.inputs:
        if one.state is not None:
            stored = program.tensors[one.state]
            inputs[one.name] = stored if name == "traced" else _used(stored, generator)
            continue
        value = recorded_tensor(program.node(one.name))
        assert value is not None
        shape = program.concrete_shape(value, sizes)
        if roles[one.name].kind is Kind.FEATURES:
            made = regime(shape, generator)
        else:
            made = _discrete(name, roles[one.name], shape, generator, program.example.get(one.name))
        inputs[one.name] = made.to(one.dtype)
    return Case(name, sizes, inputs)


def _roles(program: Program) -> dict[str, Role]:
    free = (i.name for i in program.inputs if i.state is None)
    return {name: input_role(program.node(name), program.example.get(name)) for name in free}


def _used(state: Tensor, generator: Generator) -> Tensor:
    """State as it may be after some calls: what is empty is filled, other numbers move by up to a half."""
    if not state.is_floating_point():
        return state
    if not bool(state.any()):
        return torch.randn(state.shape, generator=generator).to(state.dtype)
    return state * (0.5 + torch.rand(state.shape, generator=generator)).to(state.dtype)


def _discrete(case: str, role: Role, shape: tuple[int, ...], generator: Generator, example: Tensor | None) -> Tensor:
    if role.kind is Kind.MASK:
        mask = _mask(case, shape, generator)
        return 1 - mask if _ones_hide(example) else mask
    if role.kind is Kind.ADDITIVE_MASK:
        hidden = torch.finfo(torch.float32).min if example is None else float(example.min())
        return torch.where(_mask(case, shape, generator) > 0, 0.0, hidden)
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


def _ones_hide(example: Tensor | None) -> bool:
    """True when the example hides nothing with zeros: ``key_padding_mask`` counts that way."""
    if example is None or example.numel() == 0:
        return False
    rows = example.reshape(-1, example.shape[-1]) if example.dim() else example.reshape(1, 1)
    return bool((rows == 0).all(-1).any()) and not bool((rows != 0).all(-1).any())


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
    """The first embedding of an input, else the first float tensor that is computed from one."""
    dependent: set[fx.Node] = set()
    first: fx.Node | None = None
    node: fx.Node
    for node in program.graph.nodes:
        if node.op != "placeholder" and not any(n in dependent for n in node.all_input_nodes):
            continue
        dependent.add(node)
        value = recorded_tensor(node)
        if node.op == "call_function" and value is not None and value.is_floating_point() and value.dim() > 1:
            if node.target is torch.ops.aten.embedding.default:
                return node
            first = first or node
    return first
