"""Which queries of an attention are padding."""

from torch import Tensor

from flowopt.ir.metadata import sizes_as_text
from flowopt.program.program import Program
from flowopt.recovery.padding import input_of


def padded_queries(
    program: Program, name: str, value: Tensor, padding: str | None, masked: Tensor | None
) -> Tensor | None:
    """(batch, heads, queries), True where a query is padding.

    The layout is attention's own: sizes alone would take as many heads as tokens for the tokens.

    Args:
        program: that both belong to.
        name: of the node whose value attention gives.
        value: (batch, heads, queries, features).
        padding: the input (batch, tokens) that tells padding, as for ``real_tokens``.
        masked: (batch, tokens), True where a token is padding.

    Returns:
        None where no padding is known, or it is not that of the queries, as in attention to another sequence.
    """
    if padding is None or masked is None:
        return None
    sizes, wanted = sizes_as_text(program.node(name)), sizes_as_text(program.node(input_of(padding)))
    if len(sizes) != 4 or len(wanted) != 2 or (sizes[0], sizes[2]) != tuple(wanted):
        return None
    return masked[:, None, :].expand(value.shape[:3])
