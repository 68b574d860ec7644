"""What every stand-in for softmax attention has in common."""

import abc
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

Form = Literal["parallel", "chunked", "recurrent"]
State = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """The attention that a stand-in takes the place of.

    Attributes:
        heads: of the queries, H. Keys and values of fewer heads are repeated before a stand-in sees them.
        head_dim: features of a query and of a key, D.
        value_dim: features of a value, M.
        is_causal: a query sees the keys up to its own position.
        scale: what softmax attention multiplies the scores with.
        is_cross: the keys are of other tokens than the queries: what the key mask hides is no query otherwise.
    """

    heads: int
    head_dim: int
    value_dim: int
    is_causal: bool
    scale: float
    is_cross: bool = False


class LinearForm(nn.Module, abc.ABC):
    """Attention that never holds the matrix of all scores.

    Shapes: query (B, H, L, D), key (B, H, S, D), value (B, H, S, M), all of one floating dtype; key_mask: bool,
    broadcastable to (B, 1, 1, S), True where a key is real; None: all are. The result is (B, H, L, M), of the value's
    dtype. Causal attention needs L == S. Sums run in float32, or in float64 where that is given.

    Attributes:
        shape: of the attention.
        form: ``parallel`` writes the sums out over all pairs (causal) or at once; ``chunked`` goes chunk by chunk and
            is linear in L; ``recurrent`` token by token. They compute the same function.
        chunk: tokens in a chunk.
    """

    shape: AttentionShape
    form: Form
    chunk: int

    @abc.abstractmethod
    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Attention over whole sequences."""

    @abc.abstractmethod
    def initial_state(self, like: Tensor) -> State:
        """What causal attention carries before the first token, for queries like (B, H, any, D).

        Raises:
            UserError: it is not causal.
        """

    @abc.abstractmethod
    def step(self, query: Tensor, key: Tensor, value: Tensor, state: State) -> tuple[Tensor, State]:
        """One token of causal attention: (B, H, 1, D), (B, H, 1, D), (B, H, 1, M) and what was carried."""
