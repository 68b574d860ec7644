"""Stand-ins for softmax attention with random parameters, and inputs for them."""

import torch
from torch import Tensor

from flowopt.ops.attention import AttentionShape, LinearForm, linearization
from flowopt.ops.attention.linear_form import Form

HEADS, HEAD_DIM, VALUE_DIM = 2, 8, 6


def attention_shape(is_causal: bool, *, is_cross: bool = False) -> AttentionShape:
    return AttentionShape(HEADS, HEAD_DIM, VALUE_DIM, is_causal, scale=0.4, is_cross=is_cross)


def random_attention(name: str, shape: AttentionShape, form: Form = "chunked", **options: object) -> LinearForm:
    """In float64; of one name and shape the parameters are the same in every form."""
    module = linearization(name)(shape, form=form, **options).double().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            # Spread about what it begins as, so that a scale stays one.
            parameter.add_(noise, alpha=0.3)
    return module


def random_tokens(seed: int, length: int, keys: int | None = None, *, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """query, key and value in float64."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(count: int, width: int) -> Tensor:
        return torch.randn(batch, HEADS, count, width, generator=generator, dtype=torch.float64)

    others = length if keys is None else keys
    return tokens(length, HEAD_DIM), tokens(others, HEAD_DIM), tokens(others, VALUE_DIM)
