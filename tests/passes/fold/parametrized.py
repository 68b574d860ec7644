"""Small models whose weights are computed from other tensors at every call, each beside the plain model that it is.

float64 throughout, so that what a rewrite leaves can be told from rounding.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from tests.passes.fold.adapters import Conv1D, Dora, LoraEmbedding, lora_convolution, lora_linear
from tests.passes.programs import normal, randomised


@dataclass(frozen=True, slots=True)
class Parametrized:
    """Two layers with an activation between: parametrized, and as the plain layers that they amount to."""

    module: nn.Module
    plain: nn.Module
    x: Tensor


class SigmaReparamLinear(nn.Linear):
    """A linear layer of ``gain / sigma * weight``: one power step at each call estimates sigma, and is not stored."""

    start: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.gain = nn.Parameter(torch.ones(1))
        self.register_buffer("start", torch.ones(inputs))
        # The estimate of the last training step. At inference nothing reads it.
        self.register_buffer("last", torch.ones(1))

    def scaled(self) -> Tensor:
        """The weight that the layer multiplies with."""
        with torch.no_grad():
            left = F.normalize(self.weight @ self.start, dim=0)
            right = F.normalize(self.weight.T @ left, dim=0)
        return self.weight * (self.gain / torch.einsum("o,oi,i->", left, self.weight, right))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.scaled(), self.bias)


class SigmaReparamConv2d(SigmaReparamLinear):
    """The same of a convolution, whose weight is stored as a matrix (out, in * kernel * kernel)."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs * kernel * kernel, outputs)
        self.shape = (outputs, inputs, kernel, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.scaled().view(self.shape), self.bias)


class StandardizedConv2d(nn.Conv2d):
    """Weight standardization, with the epsilon added to the unbiased deviation, or to the variance below its root."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, inside: bool) -> None:
        super().__init__(inputs, outputs, kernel)
        self.inside = inside

    def standardized(self) -> Tensor:
        """The weight that the layer multiplies with."""
        flat = self.weight.flatten(1)
        deviation = (flat.var(dim=1) + 1e-5).sqrt() if self.inside else flat.std(dim=1) + 1e-5
        return (self.weight - flat.mean(dim=1).view(-1, 1, 1, 1)) / deviation.view(-1, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.standardized(), self.bias)


def standardized(inside: bool) -> Parametrized:
    """Weights of scale 1e-3, at which the place of the epsilon matters."""
    made = convolutions(lambda layer: StandardizedConv2d(layer.in_channels, layer.out_channels, 3, inside=inside))
    for layer in (made.module.get_submodule("0"), made.module.get_submodule("2")):
        layer.get_parameter("weight").data.mul_(1e-3)
    return made


def linears(wrap: Callable[[nn.Linear], nn.Module]) -> Parametrized:
    """Two linear layers."""
    return _pair(wrap, lambda: (nn.Linear(6, 5), nn.Linear(5, 4)), normal(3, 6).double())


def convolutions(wrap: Callable[[nn.Conv2d], nn.Module]) -> Parametrized:
    """Two convolutions."""
    return _pair(wrap, lambda: (nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3)), normal(2, 3, 7, 6).double())


def transposed(wrap: Callable[[nn.ConvTranspose2d], nn.Module]) -> Parametrized:
    """Two transposed convolutions."""
    example = normal(2, 3, 5, 4).double()
    return _pair(wrap, lambda: (nn.ConvTranspose2d(3, 5, 3), nn.ConvTranspose2d(5, 4, 3)), example)


def adapted_embedding() -> Parametrized:
    """An embedding and a linear layer, both with adapters."""
    module = nn.Sequential(LoraEmbedding(7, 6, 2), nn.GELU(), lora_linear(6, 5))
    plain = nn.Sequential(nn.Embedding(7, 6), nn.GELU(), nn.Linear(6, 5))
    return Parametrized(randomised(module).double(), plain.double().eval(), torch.tensor([[0, 3, 6], [1, 1, 2]]))


def beside_conv1d() -> Parametrized:
    """Adapters beside linear layers that store their weights (in, out)."""

    def wrap(layer: nn.Linear) -> nn.Module:
        adapted = lora_linear(layer.in_features, layer.out_features)
        adapted.base = Conv1D(layer.in_features, layer.out_features)
        return adapted

    return linears(wrap)


def _old(norm: Callable[..., nn.Module], **options: object) -> Callable[[nn.Module], nn.Module]:
    def wrap(layer: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates the hooks, and saved models still have them
            return norm(layer, **options)

    return wrap


def _pair(wrap: Callable[..., nn.Module], layers: Callable[[], tuple[nn.Module, nn.Module]], x: Tensor) -> Parametrized:
    first, second = layers()
    module = nn.Sequential(wrap(first), nn.GELU(), wrap(second))
    first, second = layers()
    return Parametrized(randomised(module).double(), nn.Sequential(first, nn.GELU(), second).double().eval(), x)


BY_CONSTANTS: dict[str, Callable[[], Parametrized]] = {
    "weight norm": lambda: linears(parametrizations.weight_norm),
    "weight norm of a convolution": lambda: convolutions(parametrizations.weight_norm),
    "weight norm over all": lambda: linears(lambda layer: parametrizations.weight_norm(layer, dim=None)),  # type: ignore[arg-type]  # None means all axes
    "weight norm by hooks": lambda: linears(_old(weight_norm)),
    "weight norm over all by hooks": lambda: convolutions(_old(weight_norm, dim=None)),
    "spectral norm": lambda: linears(parametrizations.spectral_norm),
    "spectral norm of a transposed convolution": lambda: transposed(parametrizations.spectral_norm),
    "spectral norm by hooks": lambda: convolutions(_old(spectral_norm)),
    "sigma reparametrization": lambda: linears(lambda layer: SigmaReparamLinear(layer.in_features, layer.out_features)),
    "sigma reparametrization of a convolution": lambda: convolutions(
        lambda layer: SigmaReparamConv2d(layer.in_channels, layer.out_channels, 3)
    ),
    "weight standardization": lambda: standardized(inside=False),
    "weight standardization, epsilon below the root": lambda: standardized(inside=True),
    "mask": lambda: linears(lambda layer: prune.random_unstructured(layer, "weight", 0.5)),
    "mask of channels": lambda: convolutions(lambda layer: prune.ln_structured(layer, "weight", 0.5, n=2, dim=0)),
}
BY_ADAPTERS: dict[str, Callable[[], Parametrized]] = {
    "adapter": lambda: linears(lambda layer: lora_linear(layer.in_features, layer.out_features)),
    "three adapters": lambda: linears(lambda layer: lora_linear(layer.in_features, layer.out_features, (1, 2, 1))),
    "adapter of a convolution": lambda: convolutions(
        lambda layer: lora_convolution(layer.in_channels, layer.out_channels)
    ),
    "adapter of an embedding": adapted_embedding,
    "adapter beside a transposed weight": beside_conv1d,
    "adapter with learned row lengths": lambda: linears(lambda layer: Dora(layer.in_features, layer.out_features, 2)),
}
