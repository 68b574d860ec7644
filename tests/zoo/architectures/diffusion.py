"""Diffusion: denoisers and the autoencoder, of diffusers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.randomise import randomise
from tests.zoo.zoo_model import ZooModel


class _Sample(nn.Module):
    """The tensor out of diffusers' output object."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        out: Tensor = self.model(**inputs, return_dict=False)[0]
        return out


class _Denoiser(_Sample):
    """With inputs by name, as torch.export wants them."""

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:  # type: ignore[override]
        out: Tensor = self.model(sample, timestep, return_dict=False)[0]
        return out


class _Labelled(_Sample):
    def forward(self, sample: Tensor, timestep: Tensor, label: Tensor) -> Tensor:  # type: ignore[override]
        out: Tensor = self.model(sample, timestep=timestep, class_labels=label, return_dict=False)[0]
        return out


class _Prompted(_Sample):
    def forward(self, sample: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:  # type: ignore[override]
        out: Tensor = self.model(sample, timestep=timestep, encoder_hidden_states=prompt, return_dict=False)[0]
        return out


class _Sized(_Sample):
    def forward(self, sample: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:  # type: ignore[override]
        conditions = {"resolution": None, "aspect_ratio": None}
        out: Tensor = self.model(
            sample, timestep=timestep, encoder_hidden_states=prompt, added_cond_kwargs=conditions, return_dict=False
        )[0]
        return out


class _Pooled(_Sample):
    def forward(self, sample: Tensor, timestep: Tensor, prompt: Tensor, pooled: Tensor) -> Tensor:  # type: ignore[override]
        out: Tensor = self.model(
            sample, timestep=timestep, encoder_hidden_states=prompt, pooled_projections=pooled, return_dict=False
        )[0]
        return out


class _Packed(_Sample):
    """FLUX takes packed latents, and positions of both."""

    def forward(self, sample: Tensor, timestep: Tensor, prompt: Tensor, pooled: Tensor) -> Tensor:  # type: ignore[override]
        places = sample.new_zeros(sample.shape[1], 3)
        text = sample.new_zeros(prompt.shape[1], 3)
        out: Tensor = self.model(
            sample,
            timestep=timestep,
            encoder_hidden_states=prompt,
            pooled_projections=pooled,
            img_ids=places,
            txt_ids=text,
            return_dict=False,
        )[0]
        return out


class _Coded(_Sample):
    """Encoded to the mode of its distribution, and decoded."""

    def forward(self, sample: Tensor) -> Tensor:  # type: ignore[override]
        model: Any = self.model
        out: Tensor = model.decode(model.encode(sample).latent_dist.mode(), return_dict=False)[0]
        return out


def _of(name: str, module: _Sample, seed: int, **shapes: tuple[int, ...]) -> ZooModel:
    randomise(module, seed)
    generator = torch.Generator().manual_seed(seed)
    kwargs: dict[str, Tensor | bool] = {}
    for key, shape in shapes.items():
        if key == "label":
            kwargs[key] = torch.randint(0, 10, shape, generator=generator)
        elif key == "timestep":
            kwargs[key] = torch.tensor([7.0, 421.0, 999.0])
        else:
            kwargs[key] = torch.randn(shape, generator=generator)
    dynamic = {key: {0: "batch"} for key in kwargs}
    return ZooModel(name, module.eval(), kwargs, dynamic, {"batch": (1, 16)})


def dit() -> ZooModel:
    """Norms without gain, scaled and shifted by the timestep."""
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10,
    )  # fmt: skip
    return _of("dit", _Labelled(model), 41, sample=(3, 4, 8, 8), timestep=(3,), label=(3,))


def sd3() -> ZooModel:
    """Two streams, of the picture and of the text, that attend to each other."""
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=12, num_attention_heads=4,
        joint_attention_dim=32, caption_projection_dim=48, pooled_projection_dim=40, out_channels=4,
        pos_embed_max_size=8,
    )  # fmt: skip
    return _of("sd3", _Pooled(model), 42, sample=(3, 4, 8, 8), timestep=(3,), prompt=(3, 5, 32), pooled=(3, 40))


def flux() -> ZooModel:
    """Double blocks, then single ones in parallel, with norms of queries and keys."""
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=12, num_attention_heads=4,
        joint_attention_dim=32, pooled_projection_dim=40, axes_dims_rope=(4, 4, 4),
    )  # fmt: skip
    return _of("flux", _Packed(model), 43, sample=(3, 9, 16), timestep=(3,), prompt=(3, 5, 32), pooled=(3, 40))


def pixart() -> ZooModel:
    """One table of scales and shifts for all blocks, and cross-attention."""
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        num_attention_heads=4, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, cross_attention_dim=48, caption_channels=32, use_additional_conditions=False,
    )  # fmt: skip
    return _of("pixart", _Sized(model), 44, sample=(3, 4, 8, 8), timestep=(3,), prompt=(3, 5, 32))


def unet2d() -> ZooModel:
    """Residual blocks with group norms, and attention at the lowest resolution."""
    from diffusers import UNet2DModel

    model = UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(16, 32),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    )  # fmt: skip
    return _of("unet2d", _Denoiser(model), 45, sample=(3, 3, 16, 16), timestep=(3,))


def unet2d_conditioned() -> ZooModel:
    """The same with cross-attention to a text."""
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32, attention_head_dim=8,
    )  # fmt: skip
    return _of("unet2d-conditioned", _Prompted(model), 46, sample=(3, 4, 16, 16), timestep=(3,), prompt=(3, 5, 32))


def autoencoder() -> ZooModel:
    """Stable Diffusion's."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        in_channels=3, out_channels=3, block_out_channels=(16, 32), layers_per_block=1, latent_channels=4,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16,
    )  # fmt: skip
    return _of("autoencoder-kl", _Coded(model), 47, sample=(3, 3, 16, 16))


DIFFUSION: dict[str, Callable[[], ZooModel]] = {
    "dit": dit,
    "sd3": sd3,
    "flux": flux,
    "pixart": pixart,
    "unet2d": unet2d,
    "unet2d-conditioned": unet2d_conditioned,
    "autoencoder-kl": autoencoder,
}
