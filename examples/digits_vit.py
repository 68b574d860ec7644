"""A small vision transformer, trained on scikit-learn's 8x8 digits in seconds, and saved as `digits_vit.pt2`.

    python examples/digits_vit.py

The stem normalises with BatchNorm and the blocks with LayerNorm, so that one model holds both kinds of norm.
"""

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 10
IMAGES = 1797
HELD_OUT = 360


class Block(nn.Module):
    """One pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.attention_norm(tokens))
        updated: Tensor = tokens + self.mlp(self.mlp_norm(tokens))
        return updated

    def attention(self, tokens: Tensor) -> Tensor:
        batch, length, width = tokens.shape
        packed = self.qkv(tokens).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.projection(mixed.transpose(1, 2).reshape(batch, length, width))
        return projected


class DigitsViT(nn.Module):
    """Images (batch, 1, 8, 8) to logits (batch, 10)."""

    def __init__(self, width: int = 64, heads: int = 4, depth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, width, kernel_size=2, stride=2),
            nn.BatchNorm2d(width),
        )
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, 1 + 4 * 4, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.stem(images).flatten(2).transpose(1, 2)
        class_token = self.class_token.expand(images.shape[0], -1, -1)
        tokens = torch.cat([class_token, patches], dim=1) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(tokens)[:, 0]))
        return logits


def load_images() -> tuple[Tensor, Tensor]:
    """All images (1797, 1, 8, 8) in [0, 1] with their labels, in the file's order."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).to(torch.float32).unsqueeze(1) / 16.0
    return images, torch.from_numpy(digits.target).to(torch.int64)


def train(seconds_limit: float = 60, seed: int = 0, epochs: int = 20) -> tuple[DigitsViT, float]:
    """The trained model in eval mode, and its accuracy on held-out images.

    Args:
        seconds_limit: training stops early here; the weights depend on the machine's speed only if it does.
        seed: of the split, the initial weights and the batches; the global generator is left as it was.
        epochs: passes over the training images.
    """
    deadline = time.monotonic() + seconds_limit
    images, labels = load_images()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        seen, held_out = _drawn_split()
        model = DigitsViT()
        fit(model, images[seen], labels[seen], epochs, deadline)
    model.eval()
    with torch.no_grad():
        is_right = model(images[held_out]).argmax(dim=1) == labels[held_out]
    return model, float(is_right.double().mean())


def split(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Positions of the images that ``train`` sees with this seed, and of those that it holds out."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _drawn_split()


def _drawn_split() -> tuple[Tensor, Tensor]:
    order = torch.randperm(IMAGES)
    return order[HELD_OUT:], order[:HELD_OUT]


def fit(model: DigitsViT, images: Tensor, labels: Tensor, epochs: int, deadline: float) -> None:
    batch = 64
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        # The ragged last batch is dropped: BatchNorm's statistics would weigh its few images too much.
        for chosen in torch.randperm(len(images)).split(batch)[: len(images) // batch]:
            if time.monotonic() > deadline:
                return
            loss = F.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def factory() -> dict[str, object]:
    """A quickly trained model with example inputs and dynamic dimensions, for tools that import by name."""
    # A fixed number of epochs and no deadline: two runs on one machine must give
    # the same weights, however busy it is.
    model, _ = train(seconds_limit=float("inf"), epochs=6)
    images, _ = load_images()
    return {
        "module": model,
        "args": (images[:3],),
        "dynamic": {"images": {0: "batch"}},
        "dims": {"batch": (1, 64)},
    }


def main() -> None:
    # The model is tiny: a second thread only waits, and for long where another process has the core.
    torch.set_num_threads(1)
    started = time.monotonic()
    model, accuracy = train()
    seconds = time.monotonic() - started
    print(f"accuracy on {HELD_OUT} held-out images: {accuracy:.4f}, trained in {seconds:.1f} s")
    images, _ = load_images()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images[:3],), dynamic_shapes={"images": {0: batch}}, strict=False)
    torch.export.save(program, "digits_vit.pt2")
    print("saved digits_vit.pt2")


if __name__ == "__main__":
    main()
