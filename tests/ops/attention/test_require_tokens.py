"""Numbers of tokens are whole, and at least one."""

from typing import Any

import pytest

from flowopt.errors import UserError
from flowopt.ops.attention import LINEARIZATIONS, linearization
from tests.ops.attention.random_attention import attention_shape


@pytest.mark.parametrize("name", list(LINEARIZATIONS))
@pytest.mark.parametrize("chunk", [0, -1, 2.5, True])
def test_a_chunk_that_is_no_number_of_tokens_is_refused(name: str, chunk: Any) -> None:
    with pytest.raises(UserError) as caught:
        linearization(name)(attention_shape(False), chunk=chunk)
    assert caught.value.message == f"chunk={chunk!r} is no number of tokens"


@pytest.mark.parametrize("window", [0, 2.5])
def test_so_is_a_window(window: Any) -> None:
    with pytest.raises(UserError) as caught:
        linearization("hybrid")(attention_shape(False), window=window)
    assert caught.value.message == f"window={window!r} is no number of tokens"
