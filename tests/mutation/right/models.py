"""The programs that are rewritten: models of the zoo, and small ones with operators that the zoo lacks."""

from collections.abc import Callable
from functools import cache
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowopt.pipeline.runner import run_passes
from flowopt.pipeline.text import CANONICALIZE, parse_pass
from flowopt.program.capture import capture
from flowopt.program.program import Program
from tests.zoo.models import ZOO, randomise

WIDTH = 8
_BATCH, _LENGTH = 4, 6


class Activations(nn.Module):
    """Every activation behind a linear layer of its own."""

    FUNCTIONS: Final[tuple[Callable[[Tensor], Tensor], ...]] = (
        torch.relu,
        torch.tanh,
        torch.sigmoid,
        torch.abs,
        functional.gelu,
        functional.silu,
        functional.softplus,
        functional.leaky_relu,
        functional.elu,
        functional.hardswish,
        lambda x: functional.hardtanh(x, 0.0, 6.0),
        lambda x: torch.exp(-x.abs()),
    )

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in self.FUNCTIONS)
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        rest: Tensor = x
        for layer, function in zip(self.layers, self.FUNCTIONS, strict=True):
            rest = rest + 0.3 * function(layer(x))
        result: Tensor = self.head(rest)
        return result


class Algebra(nn.Module):
    """Sums, products, quotients, means and matrices, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.inner, self.outer = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)
        self.gain = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x), self.second(x) * self.gain
        total = (a + b) + torch.sin(a) / 3.0
        cubic = a + 0.1 * a.pow(3)
        total = total * (cubic + b) - (a * b) * total
        turned = (total.transpose(1, 2) + cubic.transpose(1, 2)).transpose(1, 2)
        scores = torch.matmul(turned, b.transpose(1, 2)) * 0.25
        mixed = torch.matmul(torch.softmax(scores, -1), torch.cat([a, b], -1))
        left, right = mixed.chunk(2, -1)
        means = left.mean((1, 2), keepdim=True) + right.mean(-1, keepdim=True)
        squares = left * torch.rsqrt(left.pow(2).mean(-1, keepdim=True) + 1e-5)
        result: Tensor = self.outer(self.inner(squares + means)) * 0.7
        return torch.where(result > -1.0, result, result - 1.0)


class Sequences(nn.Module):
    """Convolutions over a sequence, norms of rows, logarithms of sums."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv1d(WIDTH, 12, 3, padding=1)
        self.grouped = nn.Conv1d(12, 12, 3, padding=2, dilation=2, groups=4)
        self.back = nn.ConvTranspose1d(12, WIDTH, 3, padding=1)
        self.layer, self.before = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.rms = nn.RMSNorm(WIDTH, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.back(torch.relu(self.grouped(self.wide(x.transpose(1, 2))))).transpose(1, 2)
        z = self.rms(y) + self.before(self.layer(y))
        return torch.log_softmax(z, -1) + torch.logsumexp(y, -1, keepdim=True)


class Volumes(nn.Module):
    """Convolutions over images and volumes with strides, groups and transposes; batch norms that nothing takes in."""

    def __init__(self) -> None:
        super().__init__()
        self.volume = nn.Conv3d(1, 4, (2, 3, 3), padding=(0, 1, 1))
        self.image, self.late = nn.Conv2d(4 * (WIDTH - 1), 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.back = nn.ConvTranspose2d(8, 6, 3, padding=1)
        self.point, self.norm = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        square = x[:, 0, :, None] * x[:, 0, None, :]
        cube = (square[:, :, :, None] + x[:, 0, None, None, :]).unsqueeze(1)
        y = self.volume(cube).flatten(1, 2)
        y = self.late(torch.relu(self.image(y)))
        y = functional.silu(self.depthwise(functional.pad(y, (1, 1, 1, 1))))
        y = torch.relu(self.norm(self.point(self.back(y))))
        return functional.adaptive_avg_pool2d(y, 1).flatten(1)


class Tokens(nn.Module):
    """Integers in: one layer of attention that sees what lies before, without padding, and one that sees all."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, WIDTH), nn.Embedding(32, WIDTH)
        self.before, self.last = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.queries, self.keys, self.values = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.words(ids) + self.places(places)
        seen = (places[None, :] <= places[:, None])[None] & (ids != 0)[:, None, :] | (places == places[:, None])
        y = self.before(x)
        q, k, v = (f(y).unflatten(-1, (2, WIDTH // 2)).transpose(1, 2) for f in (self.queries, self.keys, self.values))
        causal = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None])
        free = functional.scaled_dot_product_attention(q, k, v)
        x = self.last(x + (causal + free).transpose(1, 2).flatten(2))
        result: Tensor = self.head(x[:, 0])
        return result


SMALL: Final[dict[str, type[nn.Module]]] = {
    "activations": Activations,
    "algebra": Algebra,
    "sequences": Sequences,
    "volumes": Volumes,
    "tokens": Tokens,
}
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@cache
def program(name: str) -> Program:
    """A model by name, canonical; ``vit/float16`` is the model ``vit`` with weights and inputs of that dtype."""
    name, _, dtype = name.partition("/")
    made = _small(SMALL[name], _DTYPES.get(dtype)) if name in SMALL else _zoo(name, _DTYPES.get(dtype))
    return run_passes(made, [parse_pass(CANONICALIZE)]).program


def _zoo(name: str, dtype: torch.dtype | None) -> Program:
    model = ZOO[name]()
    kwargs = model.kwargs
    if dtype is not None:
        model.module.to(dtype)
        kwargs = {n: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in kwargs.items()}
    return capture(model.module, (), kwargs, dynamic=model.dynamic, dims=model.dims)


def _small(model: Callable[[], nn.Module], dtype: torch.dtype | None) -> Program:
    module = model()
    randomise(module, seed=11)
    generator, wanted = torch.Generator().manual_seed(11), dtype or torch.float32
    x = torch.randn(_BATCH, _LENGTH, WIDTH, generator=generator).to(wanted)
    if model is Tokens:
        x = torch.randint(0, 20, (_BATCH, _LENGTH), generator=generator)
    return capture(
        module.eval().to(wanted),
        (x,),
        dynamic={"ids" if model is Tokens else "x": {0: "batch", 1: "sequence"}},
        dims={"batch": (1, 32), "sequence": (2, 32)},
    )
