"""A graph Transformer, written from its equations: post-norm residual sums, batch norms over all nodes."""

import torch
from torch import Tensor, nn


class GraphLayer(nn.Module):
    """One layer: attention over neighbours and a feed-forward network, each followed by a sum and a batch norm.

    Source: Dwivedi and Bresson, "A Generalization of Transformer Networks to Graphs", section 2.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.first, self.second = nn.BatchNorm1d(width), nn.BatchNorm1d(width)

    def forward(self, h: Tensor, adjacency: Tensor) -> Tensor:
        h = self.first(h + self.out(self.attended(h, adjacency)))
        out: Tensor = self.second(h + self.down(torch.relu(self.up(h))))
        return out

    def attended(self, h: Tensor, adjacency: Tensor) -> Tensor:
        """h: (nodes, width); adjacency: (nodes, nodes), 1 where the second is a neighbour of the first."""
        nodes, width = h.shape
        size = width // self.heads
        q, k, v = (part(h).view(nodes, self.heads, size).transpose(0, 1) for part in (self.q, self.k, self.v))
        weights = (q @ k.transpose(1, 2) / size**0.5).clamp(-5.0, 5.0).exp() * adjacency
        read = weights @ v / weights.sum(-1, keepdim=True)
        return read.transpose(0, 1).reshape(nodes, width)


class GraphTransformer(nn.Module):
    """Node kinds and positions embedded, ``depth`` layers, a mean over nodes and a head."""

    def __init__(self, *, width: int = 8, heads: int = 2, depth: int = 4, kinds: int = 5, positions: int = 3) -> None:
        super().__init__()
        self.kinds, self.positions = nn.Embedding(kinds, width), nn.Linear(positions, width)
        self.layers = nn.ModuleList(GraphLayer(width, heads) for _ in range(depth))
        self.head = nn.Linear(width, 3)

    def forward(self, kinds: Tensor, positions: Tensor, adjacency: Tensor) -> Tensor:
        h = self.kinds(kinds) + self.positions(positions)
        for layer in self.layers:
            h = layer(h, adjacency)
        out: Tensor = self.head(h.mean(0, keepdim=True))
        return out


def graph(nodes: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs: node kinds, positions, and a random adjacency in which every node is a neighbour of itself."""
    generator = torch.Generator().manual_seed(seed)
    linked = torch.rand(nodes, nodes, generator=generator) < 0.5
    adjacency = (linked | linked.T | torch.eye(nodes, dtype=torch.bool)).float()
    kinds = torch.randint(0, 5, (nodes,), generator=generator)
    return kinds, torch.randn(nodes, 3, generator=generator), adjacency
