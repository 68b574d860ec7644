import pytest
import torch
from torch import Tensor, nn

from flowopt.errors import UserError
from flowopt.ops import TimeDependentLayerNorm, TimeTableLayerNorm
from tests.ops.test_power_norm import tokens

_TIMES = torch.tensor([-6.3, -1.1, 0.0, 0.7, 5.9], dtype=torch.float64)


def random_norm(seed: int) -> TimeDependentLayerNorm:
    torch.manual_seed(seed)
    norm = TimeDependentLayerNorm(4, eps=1e-3, dtype=torch.float64)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    return norm


def vector_at(state: dict[str, Tensor], name: str, log_snr: float) -> Tensor:
    weight, bias = state[f"{name}.nodecay_weight"] + 1, state[f"{name}.nodecay_bias"]
    share = 1 / (1 + (-(weight * log_snr / 4 + bias)).exp())
    return share * state[f"{name}.param0"] + (1 - share) * state[f"{name}.param1"]


def test_gain_and_shift_move_between_two_vectors_as_published() -> None:
    norm, x = random_norm(1), tokens(1, 2, 3, 4)
    for time in _TIMES:
        gain, shift = (vector_at(norm.state_dict(), name, time.item()) for name in ("weight", "bias"))
        expected = nn.functional.layer_norm(x, (4,), gain, shift, eps=1e-3)
        torch.testing.assert_close(norm(x, time), expected, rtol=1e-12, atol=1e-13)  # one exponential, two sums


def test_each_sample_may_have_its_own_time() -> None:
    norm, x = random_norm(2), tokens(2, 5, 2, 3, 4)
    apart = torch.cat([norm(x[n : n + 1], _TIMES[n]) for n in range(5)])
    torch.testing.assert_close(norm(x, _TIMES), apart, rtol=1e-13, atol=1e-14)  # vectorized exponentials


def test_the_table_is_the_norm_at_every_time_of_it() -> None:
    norm, x = random_norm(3), tokens(3, 2, 3, 4)
    table = norm.table(_TIMES)
    assert table.weight.shape == table.bias.shape == (5, 4)
    for time in _TIMES:
        torch.testing.assert_close(
            table(x, time.item()), norm(x, time), rtol=1e-13, atol=1e-14
        )  # vectorized exponentials


def test_a_time_outside_of_the_table_raises() -> None:
    with pytest.raises(UserError, match=r"log_snr=0\.6 is none of the 5 times"):
        random_norm(4).table(_TIMES)(tokens(4, 2, 4), 0.6)


def test_a_table_in_float32_knows_times_that_were_rounded_to_it() -> None:
    table = TimeDependentLayerNorm(4).table(torch.tensor([0.1, 0.7]))
    assert table(torch.zeros(2, 4), 0.1).shape == (2, 4)


def test_gradients_reach_every_parameter() -> None:
    norm = random_norm(5)
    norm(tokens(5, 5, 3, 4), _TIMES).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().min() > 0 for parameter in norm.parameters())


def test_constant_tokens_stay_finite() -> None:
    assert random_norm(6)(torch.ones(2, 3, 4, dtype=torch.float64), _TIMES[0]).isfinite().all()


def test_state_dicts_have_the_published_names_and_come_back() -> None:
    norm, other = random_norm(7), TimeDependentLayerNorm(4, eps=1e-3, dtype=torch.float64)
    names = {
        f"{of}.{name}" for of in ("weight", "bias") for name in ("param0", "param1", "nodecay_weight", "nodecay_bias")
    }
    assert set(norm.state_dict()) == names
    other.load_state_dict(norm.state_dict())
    x = tokens(7, 2, 3, 4)
    assert torch.equal(norm(x, _TIMES[1]), other(x, _TIMES[1]))


@pytest.mark.parametrize(
    ("shape", "times", "words"), [((2, 5), 1, "input has shape"), ((3, 4), 2, "log_snr has shape"), ((4,), 1, "input")]
)
def test_wrong_shapes_are_named(shape: tuple[int, ...], times: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        TimeDependentLayerNorm(4)(torch.zeros(shape), torch.zeros(times))


@pytest.mark.parametrize(("times", "rows"), [([0.0, 1.0], 3), ([1.0, 1.0], 2)])
def test_a_table_has_one_row_for_each_time(times: list[float], rows: int) -> None:
    with pytest.raises(UserError, match="time"):
        TimeTableLayerNorm(torch.tensor(times), torch.ones(rows, 4), torch.ones(rows, 4))
