"""See the residual streams of two models, and which of their layer norms become RMS norms.

python examples/fold_the_norms.py

In the first model every block reads the stream through a norm, so that the stream's mean never matters: it goes into
the weights of all that writes into the stream. In the second one the norm stands behind the addition, and the next
block reads what it wrote: only the norm behind the embeddings can lose its mean.
"""

import torch
from torch import Tensor, nn

import flowopt

WIDTH, TOKENS = 64, 100


class PreNorm(nn.Module):
    """x + mlp(norm(x)), twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(TOKENS, WIDTH), nn.Parameter(torch.randn(1, 16, WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.mlps = nn.ModuleList(mlp() for _ in range(2))
        self.head = nn.Linear(WIDTH, TOKENS)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.places
        for norm, block in zip(self.norms, self.mlps, strict=False):
            x = x + block(norm(x))
        logits: Tensor = self.head(self.norms[-1](x))
        return logits


class PostNorm(PreNorm):
    """norm(x + mlp(x)), twice."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norms[-1](self.embedding(ids) + self.places)
        for norm, block in zip(self.norms, self.mlps, strict=False):
            x = norm(x + block(x))
        logits: Tensor = self.head(x)
        return logits


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))


def main() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, TOKENS, (2, 16))
    for model in (PreNorm(), PostNorm()):
        program = flowopt.capture(model.eval(), (ids,), dynamic={"ids": {0: "batch"}}, dims={"batch": (1, 32)})
        print(type(model).__name__)
        for stream in flowopt.inspect_model(program, with_streams=True).streams or ():
            print(f"  a stream of {stream.features} features, {stream.placement}-norm, read by {dict(stream.norms)}")
        result = flowopt.optimize(program, target="torch", dry_run=True)
        for record in result.report.passes:
            if record.name == "fold-norm-mean":
                for applied in record.applied:
                    print(f"  applied at {applied.site}: {applied.summary}")
                for refusal in record.refused:
                    print(f"  refused at {refusal.site}: {refusal.code}: {refusal.message}")
        print(f"  {result.verdict.outcome}")


if __name__ == "__main__":
    main()
