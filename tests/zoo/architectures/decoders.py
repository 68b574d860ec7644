"""Decoders of text: pre-norm with LayerNorm or RMSNorm, parallel blocks, norms inside of branches, experts."""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any

from tests.zoo.quiet import quiet_transformers
from tests.zoo.text_models import VOCABULARY, gpt2, llama, random_text_model
from tests.zoo.zoo_model import ZooModel

# Sizes that differ from each other, so that a rewrite along the wrong axis shows.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
}
IDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def of_transformers(name: str, stem: str, head: str, config: dict[str, Any], **constants: bool) -> ZooModel:
    """``{stem}{head}`` of ``{stem}Config``, its inputs token ids and a mask."""
    quiet_transformers()
    import transformers

    made = getattr(transformers, f"{stem}Config")(**config)
    module = getattr(transformers, f"{stem}{head}")(made)
    return random_text_model(name, module, zlib.crc32(name.encode()) % 1000, **constants)


def _causal(name: str, stem: str, **config: Any) -> Callable[[], ZooModel]:
    sizes = SIZES | IDS | config
    return functools.partial(of_transformers, name, stem, "ForCausalLM", sizes, use_cache=False)


def mamba() -> ZooModel:
    """A state-space model, whose scan is unrolled over a fixed number of tokens."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 48, "state_size": 6, "num_hidden_layers": 2, "time_step_rank": 5}
    made = of_transformers("mamba", "Mamba", "ForCausalLM", sizes | IDS, use_cache=False)
    dynamic = {name: {0: "batch"} for name in made.dynamic}
    return dataclasses.replace(made, dynamic=dynamic, dims={"batch": made.dims["batch"]})


_GROUPED: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 16}

DECODERS: dict[str, Callable[[], ZooModel]] = {
    "gpt2": gpt2,
    "opt": _causal("opt", "OPT", ffn_dim=80, word_embed_proj_dim=48),
    "gpt-neox": _causal("gpt-neox", "GPTNeoX", rotary_pct=0.5),
    "llama": llama,
    "qwen2": _causal("qwen2", "Qwen2", num_key_value_heads=2),
    "qwen3": _causal("qwen3", "Qwen3", **_GROUPED),
    "mistral": _causal("mistral", "Mistral", sliding_window=None, **_GROUPED),
    "gemma": _causal("gemma", "Gemma", **_GROUPED),
    "phi": _causal("phi", "Phi", num_key_value_heads=4, partial_rotary_factor=0.5),
    "olmo2": _causal("olmo2", "Olmo2", num_key_value_heads=2),
    "cohere": _causal("cohere", "Cohere", num_key_value_heads=2),
    "mixtral": _causal("mixtral", "Mixtral", num_local_experts=3, num_experts_per_tok=2, **_GROUPED),
    "mamba": mamba,
}
