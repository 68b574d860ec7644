"""Attentions that no linear attention takes the place of, each with the code that it is refused with."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flowopt.analysis.attention_sites import attention_sites
from flowopt.program.capture import capture
from flowopt.program.program import Program
from tests.zoo.quiet import quiet_transformers
from tests.zoo.randomise import randomise

_VOCABULARY, _WIDTH, _HEADS, _LENGTH = 60, 32, 4, 9
_SIZES: dict[str, Any] = {
    "vocab_size": _VOCABULARY,
    "hidden_size": _WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": _HEADS,
    "intermediate_size": 48,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
_TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Bloom: ALiBi": ("Bloom", "alibi", {"n_layer": 2, "n_head": _HEADS}),
    "Falcon: ALiBi": ("Falcon", "alibi", {"alibi": True}),
    "T5 encoder: bias": ("T5Encoder", "relative-bias", {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2}),
    "Gemma 2: soft cap": ("Gemma2", "soft-cap", {**_GROUPED, "attn_implementation": "eager"}),
    "GPT-OSS: sinks": (
        "GptOss",
        "attention-sinks",
        {**_GROUPED, "num_local_experts": 2, "num_experts_per_tok": 1, "attn_implementation": "eager"},
    ),
    "Mistral: sliding window": ("Mistral", "arbitrary-mask", {**_GROUPED, "sliding_window": 5}),
    "BERT, eager: written out": ("Bert", "attention-not-recognized", {"attn_implementation": "eager"}),
}
_CONFIGS = {"T5Encoder": "T5"}


def refused_attentions() -> dict[str, str]:
    """By model, empty where every attention is refused with its code, else what was found instead.

    Ordinary ones are among them, which must not be refused.
    """
    expected = {name: code for name, (_, code, _) in _TRANSFORMERS.items()}
    expected |= dict.fromkeys(_ORDINARY, "") | {"blocks of tokens": "arbitrary-mask"}
    return {name: _problem(_program(name), code) for name, code in expected.items()}


def _problem(program: Program, code: str) -> str:
    sites = attention_sites(program)
    found = sorted({"" if site.refusal is None else site.refusal.code for site in sites})
    return "" if found == [code] else f"{len(sites)} attentions are refused with {found}, not with {code!r}"


def _program(name: str) -> Program:
    if name in _TRANSFORMERS:
        model, _, options = _TRANSFORMERS[name]
        return _of_transformers(model, options)
    if name in _ORDINARY:
        return _of_transformers(*_ORDINARY[name])
    return capture(_Blocks().eval(), (torch.randn(2, _HEADS, _LENGTH, 8),))


# Padding, and causal with padding and grouped keys.
_ORDINARY: dict[str, tuple[str, dict[str, Any]]] = {
    "BERT: nothing": ("Bert", {"max_position_embeddings": 64}),
    "Llama: nothing": ("Llama", {"num_key_value_heads": 2}),
}


def _of_transformers(model: str, options: dict[str, Any]) -> Program:
    quiet_transformers()
    import transformers

    make: Callable[..., nn.Module] = getattr(transformers, f"{model}Model")
    config = getattr(transformers, f"{_CONFIGS.get(model, model)}Config")(**_SIZES | options)
    module = make(config)
    randomise(module, 5)
    ids = torch.randint(3, _VOCABULARY, (2, _LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    free = {0: "batch", 1: "length"}
    caching = {} if model in ("Bert", "T5Encoder") else {"use_cache": False}
    return capture(
        module.eval(),
        (),
        {"input_ids": ids, "attention_mask": mask, **caching},
        dynamic={"input_ids": free, "attention_mask": free},
        dims={"length": (1, 64)},
    )


class _Blocks(nn.Module):
    """Tokens see those of their own block of three."""

    def forward(self, x: Tensor) -> Tensor:
        block = torch.arange(x.shape[2]) // 3
        mask = block[:, None] == block
        return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)
