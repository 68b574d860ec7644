"""Write your own pass: one file, verified like flowopt's own.

    x * sigmoid(x)  ->  silu(x)

    python examples/write_a_pass.py

Numerical effect: EXACT, the same function computed by one operator.
Refuses when: no-sigmoid, neither factor is the sigmoid of the other.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

import flowopt

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Plan:
    """Decisions only: the value that goes through SiLU."""

    x: fx.Node


class RecognizeSilu(flowopt.RewritePass[Plan]):
    """Recognise SiLU that is written out as a product with a sigmoid."""

    exactness: ClassVar[flowopt.Exactness] = flowopt.Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.mul.Tensor,)
    codes: ClassVar[dict[str, str]] = {"no-sigmoid": "neither factor is the sigmoid of the other"}

    def check(self, site: flowopt.Site) -> Plan:
        left, right = site.node.args
        for x, factor in ((left, right), (right, left)):
            is_sigmoid = isinstance(factor, fx.Node) and factor.target is aten.sigmoid.default
            if is_sigmoid and factor.args[0] is x:
                return Plan(x)
        site.refuse("no-sigmoid", f"{left} * {right} is a product of other values")

    def rewrite(self, edit: flowopt.Edit, plan: Plan) -> str:
        # `replace` claims that both values are equal; the claim is checked here and in the whole model.
        edit.replace(edit.anchor, edit.call(aten.silu.default, plan.x))
        return "x * sigmoid(x) is silu(x)"


class Gate(nn.Module):
    """A gated layer with a hand-written SiLU."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 16)
        self.up = nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        return gate * torch.sigmoid(gate) * self.up(x)


def main() -> None:
    torch.manual_seed(0)
    program = flowopt.capture(Gate().eval(), (torch.randn(2, 8),), dynamic={"x": {0: "batch"}})
    run = flowopt.Pipeline([RecognizeSilu()]).run(program)
    record = run.records[-1]
    print(f"{record.name}: {record.outcome}, applied at {len(record.applied)} of {record.anchors} sites")
    for refusal in record.refused:
        print(f"  refused at {refusal.site}: {refusal.code}: {refusal.message}")


if __name__ == "__main__":
    main()
