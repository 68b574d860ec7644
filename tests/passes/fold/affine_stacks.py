"""Random residual stacks with frozen per-channel maps: how they are spelled, where they stand, what else is there."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.passes.fold.residual import Block
from tests.passes.programs import Written, normal

TOKENS = 11


class FrozenMap(nn.Module):
    """``s * x + t`` over the last axis, spelled in one of several ways, with scales away from zero."""

    def __init__(self, width: int, spelling: str, seed: int) -> None:
        super().__init__()
        self.spelling = spelling
        self.norm = nn.BatchNorm1d(width)
        signs = normal(width, seed=seed).sign()
        self.scale = nn.Parameter(signs * (0.5 + normal(width, seed=seed + 1).abs()))
        self.shift = nn.Parameter(normal(width, seed=seed + 2))
        self.norm.weight, self.norm.bias = self.scale, self.shift
        self.norm.running_mean = normal(width, seed=seed + 3)
        self.norm.running_var = 0.5 + normal(width, seed=seed + 4).square()

    def forward(self, x: Tensor) -> Tensor:
        return SPELLINGS[self.spelling](self, x)


SPELLINGS: dict[str, Callable[[FrozenMap, Tensor], Tensor]] = {
    "mul and add": lambda m, x: x * m.scale + m.shift,
    "sub and mul": lambda m, x: m.scale * (x - m.shift),
    "div and sub": lambda m, x: x / m.scale - m.shift,
    "from the shift": lambda m, x: m.shift - x * m.scale,
    "from three times": lambda m, x: torch.sub(m.shift, x, alpha=3),
    "sum with three times": lambda m, x: torch.add(m.shift, x, alpha=3) / m.scale,
    "scale alone": lambda m, x: x * m.scale,
    "two in a row": lambda m, x: (x * m.scale + m.shift) * m.scale - m.shift,
    "batch norm over nodes": lambda m, x: m.norm(x.flatten(0, 1)).view(x.shape),
    "batch norm over a sequence": lambda m, x: m.norm(x.transpose(1, 2)).transpose(1, 2),
}


def small_then_large(inverse: float) -> tuple[Written, Tensor]:
    """A stream in float16 that a map makes ``inverse`` times smaller, and a layer then large again; with an input."""

    def forward(m: Written, x: Tensor) -> Tensor:
        x = m.entry(x)
        x = (x + m.small(x)) * m.scale + m.shift
        out: Tensor = m.head(x + m.large(x))
        return out

    width = 8
    torch.manual_seed(0)
    module = Written(
        forward,
        entry=nn.Linear(width, width),
        small=nn.Linear(width, width),
        large=nn.Linear(width, width),
        head=nn.Linear(width, 3),
        scale=nn.Parameter(torch.full((width,), 1 / inverse)),
        shift=nn.Parameter(torch.zeros(width)),
    )
    module.entry.weight.data *= 400.0
    module.entry.bias.data += 300.0
    module.small.weight.data *= 0.1
    module.large.weight.data.fill_(40.0)
    return module.half().eval(), normal(4, width).half()


@dataclass(frozen=True, slots=True)
class AffineSpec:
    """One stack.

    Attributes:
        width: of the stream.
        entry: what opens it.
        steps: of (branch, spelling of the map, where it stands).
        end: what reads it last.
    """

    width: int
    entry: str
    steps: tuple[tuple[str, str, str], ...]
    end: str


AFFINE_STACKS = st.builds(
    AffineSpec,
    width=st.integers(2, 6),
    entry=st.sampled_from(["layers", "layers", "norm", "computed"]),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["own", "shared", "gated", "halved", "unbiased"]),
            st.sampled_from(sorted(SPELLINGS)),
            st.sampled_from(["post", "post", "post", "pre", "live", "live before", "both"]),
        ),
        min_size=1,
        max_size=4,
    ).map(tuple),
    end=st.sampled_from(["head", "head", "pooled", "masked", "norm", "activation", "returned"]),
)


def affine_stack(spec: AffineSpec, seed: int) -> nn.Module:
    """The module of a spec, with random parameters in float64."""

    def branch(m: Written, kind: str, i: int, read: Tensor) -> Tensor:
        if kind == "unbiased":
            return m.linears[i](read)
        out: Tensor = m.shared(read) if kind == "shared" else m.blocks[i](read)
        if kind == "gated":
            return read[..., :1].sigmoid() * out
        return -0.5 * out if kind == "halved" else out

    def forward(m: Written, ids: Tensor) -> list[Tensor]:
        x = m.tokens(ids) + m.places
        x = {"layers": lambda: x, "norm": lambda: m.first(x), "computed": lambda: x.tanh()}[spec.entry]()
        for i, (kind, _, place) in enumerate(spec.steps):
            read = m.maps[i](x) if place in ("pre", "both") else m.norms[i](x) if place == "live before" else x
            x = x + branch(m, kind, i, read)
            x = m.maps[i](x) if place in ("post", "both") else m.norms[i](x) if place == "live" else x
        return END[spec.end](m, x)

    width, count = spec.width, len(spec.steps)
    module = Written(
        forward,
        tokens=nn.Embedding(TOKENS, width),
        places=nn.Parameter(normal(1, 5, width, seed=seed)),
        first=nn.LayerNorm(width, eps=0.1),
        maps=nn.ModuleList(FrozenMap(width, steps[1], seed + 10 * i) for i, steps in enumerate(spec.steps)),
        norms=nn.ModuleList(nn.LayerNorm(width, eps=0.1) if i % 2 else nn.RMSNorm(width) for i in range(count)),
        blocks=nn.ModuleList(Block(width, bias=i % 2 == 0) for i in range(count)),
        linears=nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(count)),
        shared=Block(width),
        last=nn.LayerNorm(width, eps=0.1),
        head=nn.Linear(width, 3),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for part in (*module.blocks, *module.linears, module.shared, module.head, module.first, module.last):
            for parameter in part.parameters():
                parameter.data = torch.randn_like(parameter)
        module.tokens.weight.data = torch.randn_like(module.tokens.weight)
    return module.double().eval()


END: dict[str, Callable[[Written, Tensor], list[Tensor]]] = {
    "head": lambda m, x: [m.head(x)],
    "pooled": lambda m, x: [m.head(x.mean(1))],
    "masked": lambda m, x: [m.head((x * (x.detach()[..., :1] * 0.0 + 0.5)).sum(1))],
    "norm": lambda m, x: [m.head(m.last(x))],
    "activation": lambda m, x: [m.head(x.tanh())],
    "returned": lambda m, x: [m.head(x), x],
}
