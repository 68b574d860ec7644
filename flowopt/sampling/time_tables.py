"""What a network computes from the time alone, as tables with one row per step, and the network that reads them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, fx

from flowopt.errors import UserError
from flowopt.ir.copy_graph import copy_graph
from flowopt.ir.evaluate import evaluate
from flowopt.ir.metadata import recorded_tensor, symbol_of
from flowopt.program.program import Program
from flowopt.sampling.time_cut import cut_at_times

# Rows of one batch are computed alike in float64 but for the order of sums, which depends on the number of rows.
_ALIKE = 1e-11


@final
@dataclass(frozen=True, slots=True, eq=False)
class TimeTables:
    """A network whose inputs are rows of tables where it read the time.

    Attributes:
        graph: the program's graph, with one more placeholder per table; times that nothing reads any more are gone.
        rows: placeholder to its table, [steps, *row]; in the dtype that the network computed.
        exact: the same, computed in float64.
        spread: tables whose row has one leading 1 that stands for every sample of the batch.
    """

    graph: fx.Graph
    rows: Mapping[str, Tensor]
    exact: Mapping[str, Tensor]
    spread: frozenset[str]


def tabulate(program: Program, times: Mapping[str, Sequence[float]], sample: str) -> TimeTables:
    """Compute what depends on the times alone, at all steps.

    Args:
        program: the network; not changed.
        times: per time input its value at each step.
        sample: the input whose first axis is the batch.

    Raises:
        UserError: a time that the input's dtype cannot hold.
    """
    given = {name: _as_input(program, name, values) for name, values in times.items()}
    # The float64 twin gets what the network gets: a time that was rounded is an input like any other.
    exact_times = {name: _raised(values) for name, values in given.items()}
    steps = len(next(iter(times.values())))
    refused: set[fx.Node] = set()
    while True:
        cut = cut_at_times(program, times, steps, refused=refused)
        unfit = {node for node, fits in zip(cut, _are_rows(program, cut, exact_times, sample), strict=True) if not fits}
        if not unfit:
            break
        refused |= unfit
    spread = {f"{node.name}_at_step" for node in cut if _free_axes(node)}
    tables = _stacked(program, cut, given, spread, raised=False)
    exact = _stacked(program, cut, exact_times, spread, raised=True)
    graph = _reading(program.graph, [n.name for n in cut])
    unread = [n for n in graph.nodes if n.op == "placeholder" and n.name in given and not n.users]
    for node in unread:
        graph.erase_node(node)
    for name in [n.name for n in graph.nodes if n.op == "placeholder" and n.name in given]:
        tables[name], exact[name] = given[name], exact_times[name]
        spread |= {name} if program.shape(name) not in ((), (1,)) else set()
    return TimeTables(graph, tables, exact, frozenset(spread))


def _stacked(
    program: Program, cut: Sequence[fx.Node], times: Mapping[str, Tensor], spread: set[str], *, raised: bool
) -> dict[str, Tensor]:
    """The values of all steps, by the placeholder that reads them."""
    steps = len(next(iter(times.values())))
    per_step = [_values(program, cut, _at(times, i), _sizes(program, 0), raised=raised) for i in range(steps)]
    found: dict[str, Tensor] = {}
    for k, node in enumerate(cut):
        name = f"{node.name}_at_step"
        found[name] = torch.stack([values[k][:1] if name in spread else values[k] for values in per_step])
    return found


def _as_input(program: Program, name: str, values: Sequence[float]) -> Tensor:
    """What the network gets, in its input's dtype: [steps] for a time without axes, else [steps, 1]."""
    value = recorded_tensor(program.node(name))
    assert value is not None, "inputs are tensors"
    odd = [v for v in values if v != int(v)] if not value.dtype.is_floating_point else []
    if odd:
        raise UserError(
            f"the time {odd[0]:g} is no whole number, but {name!r} takes {str(value.dtype).removeprefix('torch.')}",
            hint="choose a schedule or convention whose times are whole, or capture the network with floating times",
        )
    return torch.tensor(values, dtype=torch.float64).reshape(-1, *[1] * value.dim()).to(value.dtype)


def _raised(times: Tensor) -> Tensor:
    return times.double() if times.dtype.is_floating_point else times


def _at(times: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
    return {name: values[step] for name, values in times.items()}


def _sizes(program: Program, more: int) -> dict[str, int]:
    """The smallest size of every free dimension, or above it, each by another amount: ratios and differences show."""
    sizes = {d.name: d.minimum + more * (k + 1) for k, d in enumerate(program.dims)}
    return {d.name: sizes[d.name] if d.maximum is None else min(sizes[d.name], d.maximum) for d in program.dims}


def _read_sizes(node: fx.Node) -> set[str | None]:
    """Symbols of the free sizes that a value is computed with, as far as they are arguments."""
    sizes = (n.meta.get("val") for n in _needed([node]))
    return {str(s) for size in sizes if isinstance(size, torch.SymInt) for s in size.node.expr.free_symbols}


def _free_axes(node: fx.Node) -> list[int]:
    value = recorded_tensor(node)
    assert value is not None, "a cut is made of tensors"
    return [axis for axis, size in enumerate(value.shape) if not isinstance(size, int)]


def _are_rows(program: Program, cut: Sequence[fx.Node], times: Mapping[str, Tensor], sample: str) -> list[bool]:
    """For each value whether one row stands for it at every size: its only free axis is the batch, or none."""
    fits: list[bool] = []
    symbols = {_batch_symbol(program, name) for name in (*times, sample)} - {None}
    for node in cut:
        value = recorded_tensor(node)
        assert value is not None, "a cut is made of tensors"
        is_row = not (free := _free_axes(node)) or (free == [0] and symbol_of(value.shape[0]) in symbols)
        # A size of the sample is no size of its row: what depends on one is another number at another size.
        fits.append(is_row and _read_sizes(node) <= symbols)
    steps = len(next(iter(times.values())))
    fitting = [node for node, fits_so_far in zip(cut, fits, strict=True) if fits_so_far]
    unlike: set[fx.Node] = set()
    for step in {0, steps // 2, steps - 1} if fitting else ():
        tried = (_sizes(program, 0), _sizes(program, 2), {d.name: d.traced for d in program.dims})
        first, *others = (_values(program, fitting, _at(times, step), sizes, raised=True) for sizes in tried)
        for other in others:
            pairs = zip(fitting, first, other, strict=True)
            unlike |= {node for node, a, b in pairs if not _alike(a, b, has_batch=bool(_free_axes(node)))}
    return [fits_so_far and node not in unlike for node, fits_so_far in zip(cut, fits, strict=True)]


def _alike(small: Tensor, large: Tensor, *, has_batch: bool) -> bool:
    if not has_batch:
        return torch.allclose(small, large, rtol=_ALIKE, atol=0.0, equal_nan=True)
    scale = float(small.double().abs().nan_to_num(0.0, 0.0).max()) if small.numel() else 0.0
    row = small[:1]
    return all(
        torch.allclose(v, row.expand_as(v), rtol=_ALIKE, atol=_ALIKE * scale, equal_nan=True) for v in (small, large)
    )


def _batch_symbol(program: Program, name: str) -> str | None:
    value = recorded_tensor(program.node(name))
    return symbol_of(value.shape[0]) if value is not None and value.dim() else None


def _values(
    program: Program, nodes: Sequence[fx.Node], times: Mapping[str, Tensor], sizes: Mapping[str, int], *, raised: bool
) -> list[Tensor]:
    """What nodes that depend on the times alone compute at one step, for given sizes of the free dimensions."""
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    needed = _needed(nodes)
    for node in program.graph.nodes:
        if node in needed or node.op == "placeholder":
            mapping[node] = graph.node_copy(node, lambda n: mapping[n])
    graph.output(tuple(mapping[n] for n in nodes))
    inputs: dict[str, Tensor] = {}
    for node in (n for n in program.graph.nodes if n.op == "placeholder"):
        value = recorded_tensor(node)
        assert value is not None, "inputs are tensors"
        shape = program.concrete_shape(value, sizes)
        # Of the other inputs only the sizes are asked.
        given = times[node.name].expand(shape) if node.name in times else torch.empty(shape, device="meta")
        inputs[mapping[node].name] = given
    twin = program.raised_copy() if raised else program
    return list(evaluate(graph, twin.read, inputs, raised=raised))


def _needed(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending.extend(node.all_input_nodes)
    return found


def _reading(graph: fx.Graph, cut: Sequence[str]) -> fx.Graph:
    """A copy in which the cut nodes are placeholders, behind the others, and what only they needed is gone."""
    copied = copy_graph(graph)
    by_name = {n.name: n for n in copied.nodes}
    last = [n for n in copied.nodes if n.op == "placeholder"][-1]
    for name in cut:
        with copied.inserting_after(last):
            last = copied.placeholder(f"{name}_at_step")
        last.meta.update(by_name[name].meta)
        by_name[name].replace_all_uses_with(last)
    copied.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    return copied
