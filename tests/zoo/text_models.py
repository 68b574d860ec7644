"""The zoo's text models: one trained encoder, and tiny random GPT-2, BERT, Llama and T5.

All keep `sdpa`, the attention that users get by default. The tiny ones have sizes that differ from each other
(hidden, heads, head size, vocabulary), because equal sizes let a rewrite along the wrong axis pass.
"""

from torch import Tensor, nn

from examples.minilm import factory as minilm_factory
from tests.zoo.inputs import right_padded_mask, token_ids
from tests.zoo.quiet import quiet_transformers
from tests.zoo.randomise import randomise
from tests.zoo.zoo_model import ZooModel

VOCABULARY = 97


def minilm() -> ZooModel:
    """all-MiniLM-L6-v2, the one really trained model: a post-norm BERT of six layers, on three sentences."""
    made = minilm_factory()
    return ZooModel("minilm", made["module"], made["kwargs"], made["dynamic"], made["dims"])


def gpt2() -> ZooModel:
    """Causal, pre-norm, GELU by tanh, Conv1D layers, packed qkv, an output layer tied to the embedding."""
    quiet_transformers()
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=48, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
    )
    return random_text_model("gpt2", GPT2LMHeadModel(config), seed=1, use_cache=False)


def bert() -> ZooModel:
    """Bidirectional, post-norm, with a pooler."""
    quiet_transformers()
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=80,
        max_position_embeddings=64,
    )
    return random_text_model("bert", BertModel(config), seed=2)


def llama() -> ZooModel:
    """Causal, RMSNorm, rotary positions, gated SiLU, and two query heads to each key head."""
    quiet_transformers()
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
    )
    return random_text_model("llama", LlamaForCausalLM(config), seed=3, use_cache=False)


def t5() -> ZooModel:
    """An encoder with RMSNorm, unscaled attention, one learned bias of relative positions, no other bias."""
    quiet_transformers()
    from transformers import T5Config, T5EncoderModel

    # Distances are put in buckets by truncating a logarithm. With these two numbers, no distance between the
    # ends gives a whole one; with T5's own (32, 128), distances 16 and 32 do, and there the last bit of a
    # runtime's logarithm would decide the bucket.
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=48,
        d_kv=12,
        d_ff=80,
        num_layers=2,
        num_heads=6,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
    )
    return random_text_model("t5", T5EncoderModel(config), seed=4)


def random_text_model(name: str, module: nn.Module, seed: int, **constants: bool) -> ZooModel:
    randomise(module, seed)
    kwargs: dict[str, Tensor | bool] = {
        "input_ids": token_ids(5, 7, VOCABULARY, seed),
        "attention_mask": right_padded_mask(5, 7),
        **constants,
    }
    return text_model(name, module, kwargs, longest=64)


def text_model(name: str, module: nn.Module, kwargs: dict[str, Tensor | bool], longest: int) -> ZooModel:
    axes = {0: "batch", 1: "sequence"}
    return ZooModel(
        name=name,
        module=module.eval(),
        kwargs=kwargs,
        dynamic={"input_ids": dict(axes), "attention_mask": dict(axes)},
        dims={"batch": (1, 64), "sequence": (2, longest)},
    )
