"""A small softmax transformer that works out nested list operations, trained in about two minutes of processor time.

    python examples/listops.py

A question is a list such as ``[MAX 3 [SM 8 5] 1]`` and its answer a digit: ``MAX``, ``MIN`` and ``MED`` (the lower
median) take two to five arguments, ``SM`` (the sum modulo 10) takes two, and arguments of the outer list may be lists
of digits. Which numbers belong together is a matter of where they stand: with the mean of the values in place of
attention, the network has little more than a count of the digits.

After ListOps of Nangia and Bowman, arXiv:1804.06028, with less depth and shorter lists.
"""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OPERATIONS = ("MAX", "MIN", "MED", "SM")
PAD = 0
END = 1 + len(OPERATIONS)
FIRST_DIGIT = END + 1
CLASSES = 10
LENGTH = 48
HELD_OUT = 2000
TRAINING = 30000
_NO_VALUE = -100
_ARGUMENTS = (2, 5)


@dataclass(frozen=True, slots=True)
class Questions:
    """Attributes:
    tokens: int64 (questions, LENGTH): 1 to 4 an operation with its bracket, 5 the closing bracket, from 6 on digits,
        0 padding.
    values: int64 (questions, LENGTH): at each operation what its list comes to, elsewhere -100.
    """

    tokens: Tensor
    values: Tensor

    @property
    def labels(self) -> Tensor:
        """What each question comes to, (questions,)."""
        return self.values[:, 0]


def generate(count: int, seed: int) -> Questions:
    """Questions with their answers, the same for a seed on every machine."""
    source = random.Random(seed)
    tokens = torch.full((count, LENGTH), PAD)
    values = torch.full((count, LENGTH), _NO_VALUE)
    made = 0
    while made < count:
        question: list[tuple[int, int]] = []
        _draw(source, question, is_outer=True)
        if 8 <= len(question) <= LENGTH:
            drawn = torch.tensor(question)
            tokens[made, : len(question)], values[made, : len(question)] = drawn.unbind(1)
            made += 1
    return Questions(tokens, values)


def _draw(source: random.Random, question: list[tuple[int, int]], *, is_outer: bool) -> int:
    """Append a list of tokens and values; what it comes to."""
    operation, at = source.randrange(len(OPERATIONS)), len(question)
    question.append((1 + operation, _NO_VALUE))
    arguments = []
    for _ in range(2 if OPERATIONS[operation] == "SM" else source.randint(*_ARGUMENTS)):
        if is_outer and source.random() < 0.5:
            arguments.append(_draw(source, question, is_outer=False))
        else:
            arguments.append(source.randrange(10))
            question.append((FIRST_DIGIT + arguments[-1], _NO_VALUE))
    question.append((END, _NO_VALUE))
    result = _value(OPERATIONS[operation], arguments)
    question[at] = (1 + operation, result)
    return result


def _value(operation: str, arguments: list[int]) -> int:
    if operation == "SM":
        return sum(arguments) % 10
    ordered = sorted(arguments)
    return {"MAX": ordered[-1], "MIN": ordered[0], "MED": ordered[(len(ordered) - 1) // 2]}[operation]


class Block(nn.Module):
    """One pre-norm transformer block with rotary positions: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, width = x.shape
        packed = self.qkv(self.attention_norm(x)).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        query, key = (_rotated(t, cos, sin) for t in (query, key))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.projection(mixed.transpose(1, 2).reshape(batch, length, width))
        updated: Tensor = x + self.mlp(self.mlp_norm(x))
        return updated


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    one, other = x.chunk(2, dim=-1)
    return torch.cat([one * cos - other * sin, other * cos + one * sin], dim=-1)


class ListOps(nn.Module):
    """Tokens (batch, length) to the logits of the answer (batch, 10). A token's nesting depth is embedded with it."""

    rates: Tensor

    def __init__(self, width: int = 64, heads: int = 4, depth: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(FIRST_DIGIT + 10, width)
        self.nesting = nn.Embedding(4, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)
        pairs = width // heads // 2
        self.register_buffer("rates", 100.0 ** (-torch.arange(pairs) / pairs), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.every_value(tokens)[:, 0]

    def every_value(self, tokens: Tensor) -> Tensor:
        """Logits (batch, length, 10): at an operation what its list comes to, elsewhere of no use."""
        mask = (tokens != PAD)[:, None, None, :]
        opened = ((tokens != PAD) & (tokens < END)).cumsum(1)
        x = self.embedding(tokens) + self.nesting(opened - (tokens == END).cumsum(1))
        angles = torch.arange(tokens.shape[1], device=tokens.device)[:, None] * self.rates
        for block in self.blocks:
            x = block(x, mask, angles.cos(), angles.sin())
        logits: Tensor = self.head(self.norm(x))
        return logits


def train(seed: int = 0, steps: int = 2500) -> tuple[ListOps, float]:
    """The trained model in eval mode, and its accuracy on held-out questions.

    Args:
        seed: of the initial weights and the batches; the global generator is left as it was.
        steps: of 64 questions each.
    """
    seen = training(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ListOps()
        fit(model, seen, steps)
    model.eval()
    return model, accuracy(model, held_out(seed))


def training(seed: int = 0) -> Questions:
    """What ``train`` with this seed sees."""
    return generate(TRAINING, seed=2 * seed)


def held_out(seed: int = 0) -> Questions:
    """What it does not see, but for the few short questions that two draws have in common."""
    return generate(HELD_OUT, seed=2 * seed + 1)


@torch.no_grad()
def accuracy(model: nn.Module, questions: Questions) -> float:
    """Share of right answers."""
    answers = torch.cat([model(tokens).argmax(dim=1) for tokens in questions.tokens.split(250)])
    return float((answers == questions.labels).double().mean())


def fit(model: ListOps, seen: Questions, steps: int, batch: int = 64) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps, pct_start=0.1)
    model.train()
    for part in _drawn(seen, steps, batch):
        values, logits = part.values, model.every_value(part.tokens)
        # What inner lists come to is told, too: the answer alone says little of them.
        loss = F.cross_entropy(logits[:, 0], values[:, 0]) + 2 * F.cross_entropy(logits.flatten(0, 1), values.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _drawn(seen: Questions, steps: int, batch: int) -> Iterator[Questions]:
    drawn = 0
    while True:
        for part in batches(seen, batch):
            yield part
            drawn += 1
            if drawn == steps:
                return


def batches(questions: Questions, batch: int = 64) -> Iterator[Questions]:
    """All questions once in a drawn order, those of a batch of about one length, and cut to it: that saves padding."""
    lengths = (questions.tokens != PAD).sum(1)
    for group in torch.randperm(len(lengths)).split(20 * batch):
        parts = group[lengths[group].argsort()].split(batch)
        for chosen in (parts[k] for k in torch.randperm(len(parts)).tolist()):
            longest = int(lengths[chosen].max())
            yield Questions(questions.tokens[chosen, :longest], questions.values[chosen, :longest])


def factory() -> dict[str, object]:
    """A quickly trained model with example inputs and dynamic dimensions, for tools that import by name."""
    model, _ = train(steps=200)
    return {
        "module": model,
        "args": (held_out().tokens[:3],),
        "dynamic": {"tokens": {0: "batch", 1: "length"}},
        "dims": {"batch": (1, 256), "length": (2, 4096)},
    }


def main() -> None:
    # The model is tiny: a second thread only waits, and for long where another process has the core.
    torch.set_num_threads(1)
    started = time.process_time()
    _, share = train()
    print(f"accuracy on {HELD_OUT} held-out questions: {share:.4f}, in {time.process_time() - started:.0f} s")


if __name__ == "__main__":
    main()
