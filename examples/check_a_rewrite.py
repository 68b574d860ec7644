"""Check rewrites of your own: one that is right, and one that only looks right.

    python examples/check_a_rewrite.py

The attention of a trained model was rewritten twice by hand. Both agree with the original to seven digits on ordinary
inputs. One of them leaves out the shift that keeps a softmax from overflowing.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import flowopt

WIDTH, SEED = 16, 5


class Attention(nn.Module):
    """One head over (batch, sequence, width), with its softmax exchangeable."""

    def __init__(self, softmax: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.softmax = softmax

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2) / WIDTH**0.5
        result: Tensor = self.softmax(scores) @ self.value(x)
        return result


def original(scores: Tensor) -> Tensor:
    return torch.softmax(scores, -1)


def shifted(scores: Tensor) -> Tensor:
    powers = torch.exp(scores - scores.amax(-1, keepdim=True))
    return powers / powers.sum(-1, keepdim=True)


def unshifted(scores: Tensor) -> Tensor:
    powers = torch.exp(scores)
    return powers / powers.sum(-1, keepdim=True)


def captured(softmax: Callable[[Tensor], Tensor]) -> flowopt.Program:
    torch.manual_seed(SEED)
    x = torch.randn(2, 6, WIDTH)
    free = {"x": {0: "batch", 1: "sequence"}}
    return flowopt.capture(Attention(softmax).eval(), (x,), dynamic=free, dims={"batch": (1, 8), "sequence": (1, 32)})


def main() -> None:
    reference = captured(original)
    for rewrite in (shifted, unshifted):
        candidate = captured(rewrite)
        largest = (candidate.run(**reference.example) - reference.run(**reference.example)).abs().max()
        print(f"{rewrite.__name__}: largest difference on the example {largest:.1e}")
        with tempfile.TemporaryDirectory() as folder:
            worst = Path(folder) / "worst.npz"
            verdict = flowopt.verify(reference, candidate, level="full", reproducer=worst)
            print(f"  {verdict.outcome.value} in {len(verdict.cases)} cases; {verdict.reason or 'no finding'}")
            if not verdict:
                again = flowopt.verify(reference, candidate, inputs=worst)
                print(f"  replayed from {worst.name}: {again.outcome.value}")


if __name__ == "__main__":
    main()
