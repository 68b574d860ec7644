"""The network of a step as a function that can be traced again, at another batch size."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, fx, nn

from flowopt.program.program import Program
from flowopt.sampling.roles import Roles
from flowopt.sampling.time_tables import TimeTables


@final
@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """What a step runs: the network with tables where it read the time.

    Attributes:
        module: the graph and its tensors.
        names: its inputs, in order.
        roles: of the captured network's inputs.
        spread: inputs whose leading 1 stands for the whole batch.
        dtype: of its sample.
    """

    module: nn.Module
    names: tuple[str, ...]
    roles: Roles
    spread: frozenset[str]
    dtype: torch.dtype

    def predict(self, sample: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """The prediction for a batch of samples, in the sample's shape.

        Args:
            sample: [batch, ...], in any floating dtype.
            values: conditions for that batch, and rows of tables, by name.
        """
        batch = sample.shape[0]
        given = {self.roles.sample: sample.to(self.dtype)}
        for name in self.names:
            if name in self.spread:
                row = values[name]
                given[name] = row.expand(batch, *row.shape[1:])
            elif name not in given:
                given[name] = values[name]
        # Keeps the user's source lines on the nodes that are traced.
        with fx.traceback.preserve_node_meta():
            outputs = fx.Interpreter(self.module).run(*(given[name] for name in self.names))
        found: Tensor = outputs[0]
        return found[:, : sample.shape[1]] if self.roles.is_doubled else found


def network_of(program: Program, roles: Roles, tables: TimeTables) -> Network:
    """The network of a program that returns the prediction alone, whose times are read from tables."""
    used = {str(n.target) for n in tables.graph.nodes if n.op == "get_attr"}
    module = fx.GraphModule({name: program.tensors[name] for name in used}, tables.graph, "Network").eval()
    return Network(
        module,
        tuple(n.name for n in tables.graph.nodes if n.op == "placeholder"),
        roles,
        tables.spread,
        next(i.dtype for i in program.inputs if i.name == roles.sample),
    )
