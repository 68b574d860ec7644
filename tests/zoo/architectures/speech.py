"""Speech: encoders behind convolutions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.quiet import quiet_transformers
from tests.zoo.randomise import randomise
from tests.zoo.zoo_model import ZooModel


class _Last(nn.Module):
    """The last hidden state of an encoder that needs no mask."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.encoder(features).last_hidden_state
        return out


def _of(
    name: str, encoder: nn.Module, shape: tuple[int, ...], seed: int, dims: dict[str, Any] | None = None
) -> ZooModel:
    randomise(encoder, seed)
    features = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    free = {"batch": (1, 16)} if dims is None else dims
    return ZooModel(
        name=name,
        module=_Last(encoder).eval(),
        kwargs={"features": features},
        dynamic={"features": {0: "batch"}},
        dims=free,
    )


def whisper() -> ZooModel:
    """The encoder: two convolutions with a GELU, then pre-norm blocks."""
    quiet_transformers()
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        d_model=48,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=80,
        num_mel_bins=10,
        max_source_positions=16,
    )
    return _of("whisper-encoder", WhisperEncoder(config), (3, 10, 32), 31)


def wav2vec2() -> ZooModel:
    """Group norm behind the first convolution, convolutional positions, post-norm blocks."""
    quiet_transformers()
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=80,
        conv_dim=(12, 16),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
    )
    return _of("wav2vec2", Wav2Vec2Model(config), (3, 400), 32)


SPEECH: dict[str, Callable[[], ZooModel]] = {"whisper-encoder": whisper, "wav2vec2": wav2vec2}
