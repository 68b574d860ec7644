"""Random residual stacks: where norms stand, what branches do, what is shared, gated and tapped."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from flowopt.pipeline.runner import PipelineRun, run_passes
from flowopt.pipeline.text import parse_pipeline
from flowopt.program.capture import capture
from tests.passes.fold.residual import WIDTH, Block, norm
from tests.passes.programs import Written, randomised, together

PASSES = "fold-norm-affine,fold-norm-mean"
_TOKENS = 11
# Sums of at most 64 products in float64, of values near 1.
_TOLERANCE = 1e-10


@dataclass(frozen=True, slots=True)
class StackSpec:
    """One stack: its entry, steps of (branch, placement), and what else reads the stream."""

    entry: str
    steps: tuple[tuple[str, str], ...]
    tap: str
    rms: bool


STACKS = st.builds(
    StackSpec,
    entry=st.sampled_from(["layers", "layers", "computed"]),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["own", "shared", "gated", "gated by feature", "linear"]),
            st.sampled_from(["pre", "pre", "pre", "pre", "parallel", "post", "peri", "raw"]),
        ),
        min_size=1,
        max_size=3,
    ).map(tuple),
    tap=st.sampled_from(["no", "no", "no", "output", "layer"]),
    rms=st.booleans(),
)


def stack(spec: StackSpec, seed: int) -> nn.Module:
    """The module of a spec, with random parameters in float64."""

    def branch(m: Written, kind: str, i: int, read: Tensor) -> Tensor:
        if kind == "shared":
            return m.shared(read)
        if kind == "linear":
            return m.linears[i](read)
        out: Tensor = m.blocks[i](read)
        if kind == "gated":
            return read[..., :1].sigmoid() * out
        return out * m.linears[i](read).sigmoid() if kind == "gated by feature" else out

    def forward(m: Written, ids: Tensor) -> list[Tensor]:
        x = m.tokens(ids) + m.places if spec.entry == "layers" else m.tokens(ids).tanh()
        for i, (kind, place) in enumerate(spec.steps):
            read = m.norms[i](x) if place in ("pre", "peri", "parallel") else x
            y = branch(m, kind, i, read)
            if place == "parallel":
                y = y + m.linears[i](read)
            x = x + (m.outer(y) if place == "peri" else y)
            x = m.norms[i](x) if place == "post" else x
        out = [m.head(m.last(x))]
        return [*out, {"output": lambda: x, "layer": lambda: m.head(x)}[spec.tap]()] if spec.tap != "no" else out

    count = len(spec.steps)
    last: nn.Module = nn.RMSNorm(WIDTH, eps=0.1) if spec.rms else norm()
    return randomised(
        Written(
            forward,
            tokens=nn.Embedding(_TOKENS, WIDTH),
            places=nn.Parameter(torch.zeros(1, 5, WIDTH)),
            norms=nn.ModuleList(norm() for _ in range(count)),
            blocks=nn.ModuleList(Block(bias=i % 2 == 0) for i in range(count)),
            linears=nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(count)),
            shared=Block(),
            outer=norm(),
            last=last,
            head=nn.Linear(WIDTH, 3),
        ),
        seed,
    ).double()


def rewritten(specs: Sequence[StackSpec]) -> tuple[PipelineRun, set[str]]:
    """All stacks in one program, rewritten, and the paths of those where a pass fired.

    Raises:
        AssertionError: an output is not what it was.
    """
    module, inputs = together(
        [(stack(spec, seed), torch.randint(0, _TOKENS, (2, 5))) for seed, spec in enumerate(specs)]
    )
    program = capture(module, inputs)
    run = run_passes(program, parse_pipeline(PASSES))
    wanted, found = (p.run(*inputs) for p in (program, run.program))
    torch.testing.assert_close(_outputs(found), _outputs(wanted), rtol=_TOLERANCE, atol=_TOLERANCE)
    modules = [one.module for record in run.records[-2:] for one in record.applied]
    return run, {".".join(path.split(".")[:2]) for path in modules}


def _outputs(result: Any) -> dict[str, Tensor]:
    return result if isinstance(result, dict) else {"output": result}
