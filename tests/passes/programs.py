"""Modules and programs that the tests of passes are made of."""

import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from flowopt.passes.cleanup.canonicalize_aten import CanonicalizeAten
from flowopt.pipeline.runner import run_passes
from flowopt.program.from_exported import program_from_exported
from flowopt.program.program import Program, Provenance
from tests.zoo.models import randomise

M = TypeVar("M", bound=nn.Module)


class Written(nn.Module):
    """A module whose forward is a function of its parts: ``Written(lambda m, x: m.norm(x), norm=nn.LayerNorm(4))``."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def forward(self, x: Tensor, *more: Tensor) -> Any:
        return self.function(self, x, *more)


def randomised(module: M, seed: int = 0) -> M:
    """The module in eval mode with random parameters and statistics: a zero gain, a negative one, no defaults."""
    randomise(module, seed)
    return module.eval()


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def together(cases: list[tuple[nn.Module, Tensor]]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Modules with an input each as one module: capturing costs more than the rest of a test."""
    modules, inputs = zip(*cases, strict=True)
    module = Written(
        lambda m, *xs: [part(x) for part, x in zip(m.parts, xs, strict=True)], parts=nn.ModuleList(modules)
    )
    return module.eval(), inputs


def undecomposed(module: nn.Module, *inputs: Tensor) -> Program:
    """The program of a bare ``torch.export.export``, in which a batch norm is still ``aten.batch_norm``."""
    return program_from_exported(_exported(module, inputs, {}), {}, Provenance("test", torch.__version__))


def decomposed(module: nn.Module, *inputs: Tensor, **named: Any) -> Program:
    """The program of an archive with torch's default decompositions: ``convolution``, ``addmm``, ``mm``, ``bmm``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own deprecated LeafSpec
        exported = _exported(module, inputs, named).run_decompositions()
        archive = io.BytesIO()
        torch.export.save(exported, archive)
        archive.seek(0)
        exported = torch.export.load(archive)
    return program_from_exported(exported, {}, Provenance("test", torch.__version__))


def canonical(program: Program) -> Program:
    """The program after ``canonicalize-aten``."""
    return run_passes(program, [CanonicalizeAten()]).program


def _exported(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any]) -> Any:
    return torch.export.export(module, inputs, named, strict=False)
