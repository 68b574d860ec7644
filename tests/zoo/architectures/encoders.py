"""Encoders of text, and models of an encoder and a decoder."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.architectures.decoders import IDS, SIZES, of_transformers
from tests.zoo.inputs import right_padded_mask, token_ids
from tests.zoo.quiet import quiet_transformers
from tests.zoo.randomise import randomise
from tests.zoo.text_models import VOCABULARY, bert, t5
from tests.zoo.zoo_model import ZooModel


def _encoder(name: str, stem: str, **config: Any) -> Callable[[], ZooModel]:
    return functools.partial(of_transformers, name, stem, "Model", SIZES | config)


def bart() -> ZooModel:
    """Post-norm in both halves, with cross-attention."""
    quiet_transformers()
    from transformers import BartConfig, BartModel

    config = BartConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
        d_model=48,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=80,
        decoder_ffn_dim=80,
        **IDS,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
    )
    module = BartModel(config)
    randomise(module, 21)
    axes = {0: "batch", 1: "sequence"}
    return ZooModel(
        name="bart",
        module=module.eval(),
        kwargs={
            "input_ids": token_ids(5, 7, VOCABULARY, 21),
            "attention_mask": right_padded_mask(5, 7),
            "decoder_input_ids": token_ids(5, 6, VOCABULARY, 22),
            "use_cache": False,
        },
        dynamic={
            "input_ids": dict(axes),
            "attention_mask": dict(axes),
            "decoder_input_ids": {0: "batch", 1: "decoded"},
        },
        dims={"batch": (1, 64), "sequence": (2, 64), "decoded": (2, 64)},
    )


class TokenAttention(nn.Module):
    """A pre-norm stack whose projections attend to learned tokens, as in TokenFormer."""

    def __init__(self, width: int = 48, tokens: int = 20, depth: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.keys, self.values = (
            nn.ParameterList(nn.Parameter(torch.zeros(tokens, width)) for _ in range(5 * depth)) for _ in range(2)
        )
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)
        self.depth, self.heads = depth, 4

    def attended(self, x: Tensor, number: int) -> Tensor:
        """Queries are rows of x, keys and values are parameters; scores are normalised by their length."""
        scores = x @ self.keys[number].t()
        scale = self.keys[number].shape[0] ** 0.5
        weights = nn.functional.gelu(scores / scores.norm(dim=-1, keepdim=True) * scale)
        return weights @ self.values[number]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        hidden = attention_mask.bool()[:, None, None, :]
        for i in range(self.depth):
            y = self.norms[2 * i](x)
            q, k, v = (self.attended(y, 5 * i + j).unflatten(-1, (self.heads, -1)).transpose(1, 2) for j in range(3))
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=hidden)
            x = x + self.attended(mixed.transpose(1, 2).flatten(2), 5 * i + 3)
            x = x + self.attended(self.norms[2 * i + 1](x), 5 * i + 4)
        out: Tensor = self.head(self.last(x))
        return out


def tokenformer() -> ZooModel:
    """Attention to parameters in place of linear layers."""
    from tests.zoo.text_models import random_text_model

    return random_text_model("tokenformer", TokenAttention(), 23)


ENCODERS: dict[str, Callable[[], ZooModel]] = {
    "bert": bert,
    "roberta": _encoder("roberta", "Roberta", max_position_embeddings=66, **IDS),
    "distilbert": functools.partial(
        of_transformers,
        "distilbert",
        "DistilBert",
        "Model",
        {
            "vocab_size": VOCABULARY,
            "dim": 48,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 80,
            "max_position_embeddings": 64,
        },
    ),
    "albert": _encoder("albert", "Albert", embedding_size=32),
    "electra": _encoder("electra", "Electra", embedding_size=32),
    "t5": t5,
    "bart": bart,
    "tokenformer": tokenformer,
}
