"""The models of the bench, at the sizes at which they are deployed. Random weights, except MiniLM's.

Each function is a factory: what it returns are the arguments of ``flowopt.capture``. Text models have a free batch and
sequence; image models a free batch, and one factory for each image size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.inputs import images, right_padded_mask, token_ids
from tests.zoo.quiet import quiet_transformers

TEXT_DIMS = {"batch": (1, 16), "sequence": (2, 512)}
IMAGE_DIMS = {"batch": (1, 16)}


def minilm() -> dict[str, Any]:
    """all-MiniLM-L6-v2, trained: 6 layers of width 384, 23 M parameters."""
    from examples.minilm import factory

    return factory()


def gpt2() -> dict[str, Any]:
    """GPT-2 small: 12 layers of width 768, 124 M parameters, logits of every position."""
    return gpt2_of_depth(12)


def gpt2_of_depth(layers: int) -> dict[str, Any]:
    """GPT-2 with the widths of the small one and any number of layers."""
    quiet_transformers()
    from transformers import GPT2Config, GPT2LMHeadModel

    return _text(GPT2LMHeadModel(GPT2Config(n_layer=layers)), 50257, use_cache=False)


def narrow_gpt2_of_depth(layers: int) -> dict[str, Any]:
    """GPT-2 of width 64: its graph is that of the large one, and its numbers cost nothing."""
    quiet_transformers()
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=layers, n_embd=64, n_head=2, vocab_size=97)
    return _text(GPT2LMHeadModel(config), 97, use_cache=False)


def llama() -> dict[str, Any]:
    """Llama-shaped: 12 layers of width 768, 12 query heads to 4 key heads, gated MLP of 2,048, 124 M parameters."""
    quiet_transformers()
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    )
    return _text(LlamaForCausalLM(config), 32000, use_cache=False)


def vit_long() -> dict[str, Any]:
    """ViT-S/16 at 224: 197 tokens of width 384, 12 layers, 22 M parameters."""
    return _vit(224)


def vit_short() -> dict[str, Any]:
    """ViT-S/16 at 64: 17 tokens."""
    return _vit(64)


def resnet_long() -> dict[str, Any]:
    """ResNet-18 at 224, 12 M parameters."""
    return _resnet(224)


def resnet_short() -> dict[str, Any]:
    """ResNet-18 at 64."""
    return _resnet(64)


def convnext_long() -> dict[str, Any]:
    """ConvNeXt-T at 224, 29 M parameters."""
    return _convnext(224)


def convnext_short() -> dict[str, Any]:
    """ConvNeXt-T at 64."""
    return _convnext(64)


def dit_long() -> dict[str, Any]:
    """DiT-S/2 on latents of 32 x 32: 256 tokens of width 384, 12 layers, 33 M parameters."""
    return _dit(32)


def dit_short() -> dict[str, Any]:
    """DiT-S/2 on latents of 16 x 16: 64 tokens."""
    return _dit(16)


def _vit(size: int) -> dict[str, Any]:
    quiet_transformers()
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, image_size=size, num_labels=1000)
    return _image(ViTForImageClassification(config), size)


def _resnet(size: int) -> dict[str, Any]:
    quiet_transformers()
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", num_labels=1000)
    return _image(ResNetForImageClassification(config), size)


def _convnext(size: int) -> dict[str, Any]:
    quiet_transformers()
    from transformers import ConvNextConfig, ConvNextForImageClassification

    return _image(ConvNextForImageClassification(ConvNextConfig(num_labels=1000)), size)


class _Dit(nn.Module):
    """The denoiser's tensor out of diffusers' output object."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        sample: Tensor = self.model(latents, timestep=timestep, class_labels=label, return_dict=False)[0]
        return sample


def _dit(size: int) -> dict[str, Any]:
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=6, attention_head_dim=64, num_layers=12, sample_size=size, out_channels=8
    )
    kwargs = {
        "latents": images(3, 4, size, 1),
        "timestep": torch.tensor([7, 421, 999]),
        "label": torch.tensor([0, 17, 999]),
    }
    return _made(_Dit(model), kwargs, {name: {0: "batch"} for name in kwargs}, IMAGE_DIMS)


def _text(module: nn.Module, vocabulary: int, **constants: bool) -> dict[str, Any]:
    kwargs = {"input_ids": token_ids(3, 21, vocabulary, 0), "attention_mask": right_padded_mask(3, 21), **constants}
    axes = {0: "batch", 1: "sequence"}
    return _made(module, kwargs, {"input_ids": axes, "attention_mask": dict(axes)}, TEXT_DIMS)


def _image(module: nn.Module, size: int) -> dict[str, Any]:
    return _made(module, {"pixel_values": images(3, 3, size, 1)}, {"pixel_values": {0: "batch"}}, IMAGE_DIMS)


def _made(module: nn.Module, kwargs: dict[str, Any], dynamic: dict[str, Any], dims: dict[str, Any]) -> dict[str, Any]:
    from tests.zoo.randomise import randomise

    randomise(module, 5)
    return {"module": module.eval(), "kwargs": kwargs, "dynamic": dynamic, "dims": dims}


FACTORIES: dict[str, Callable[[], dict[str, Any]]] = {
    "minilm": minilm,
    "gpt2": gpt2,
    "llama": llama,
    "vit-short": vit_short,
    "vit-long": vit_long,
    "resnet-short": resnet_short,
    "resnet-long": resnet_long,
    "convnext-short": convnext_short,
    "convnext-long": convnext_long,
    "dit-short": dit_short,
    "dit-long": dit_long,
}
