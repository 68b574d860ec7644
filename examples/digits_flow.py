"""A class-conditional rectified flow on scikit-learn's 8x8 digits: a diffusion transformer that trains in a minute.

    x(t) = t image + (1 - t) noise,    v(x(t), t, label) is trained towards image - noise,    t in [0.001, 1]

The network is told 999 t, and in one of ten examples the label that stands for none. That is the convention
"rectified-flow" of flowopt.sampling, with images in [-1, 1].
"""

import math

import torch
import torch.nn.functional as F
from digits_vit import CLASSES
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

NO_LABEL = CLASSES
TIME_SCALE = 999.0
FIRST_TIME = 1e-3
DROPPED = 0.1  # of the labels


class Block(nn.Module):
    """A transformer block whose norms are scaled and shifted, and whose branches are gated, by the condition."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        self.attention_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(condition)[:, None].chunk(6, dim=-1)
        tokens = tokens + gate * self.attention(self.attention_norm(tokens) * (1 + scale) + shift)
        updated: Tensor = tokens + mlp_gate * self.mlp(self.mlp_norm(tokens) * (1 + mlp_scale) + mlp_shift)
        return updated

    def attention(self, tokens: Tensor) -> Tensor:
        batch, length, width = tokens.shape
        packed = self.qkv(tokens).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.projection(mixed.transpose(1, 2).reshape(batch, length, width))
        return projected


class DigitsFlow(nn.Module):
    """Velocity (batch, 1, 8, 8) of images x at times t, both of the batch, with labels 0 to 9, or 10 for none."""

    def __init__(self, width: int = 64, heads: int = 4, depth: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, kernel_size=2, stride=2)
        self.position = nn.Parameter(0.02 * torch.randn(1, 4 * 4, width))
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(CLASSES + 1, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.head = zeroed(nn.Linear(width, 4))

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        condition = F.silu(self.time(waves(t, self.position.shape[-1])) + self.label(label))
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            tokens = block(tokens, condition)
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        pixels = self.head(self.norm(tokens) * (1 + scale) + shift)
        return F.pixel_shuffle(pixels.transpose(1, 2).reshape(-1, 4, 4, 4), 2)


def zeroed(layer: nn.Linear) -> nn.Linear:
    """The layer with zeros: every block starts as the identity, and the velocity as zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def waves(t: Tensor, width: int) -> Tensor:
    """Sines and cosines of the times, (batch,) to (batch, width)."""
    half = width // 2
    angles = t[:, None] * torch.exp(-math.log(10_000.0) * torch.arange(half) / half)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def train(images: Tensor, labels: Tensor, steps: int = 800, depth: int = 3, seed: int = 0) -> DigitsFlow:
    """The trained network in eval mode, its weights averaged over the last steps.

    Args:
        images: (count, 1, 8, 8) in [-1, 1].
        labels: (count,), int64.
        steps: how many batches of 128.
        depth: of the network.
        seed: of weights, noise and batches; the global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitsFlow(depth=depth)
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(1 - 10 / steps))
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.1)
        for _ in range(steps):
            chosen = torch.randint(len(images), (128,))
            loss = loss_of(model, images[chosen], labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
    assert isinstance(average.module, DigitsFlow), "an average is one of what it averages"
    return average.module.eval()


def loss_of(model: DigitsFlow, images: Tensor, labels: Tensor) -> Tensor:
    count = len(images)
    t = FIRST_TIME + (1 - FIRST_TIME) * torch.rand(count)
    noise = torch.randn_like(images)
    share = t[:, None, None, None]
    told = labels.where(torch.rand(count) >= DROPPED, NO_LABEL)
    return F.mse_loss(model(share * images + (1 - share) * noise, TIME_SCALE * t, told), images - noise)
