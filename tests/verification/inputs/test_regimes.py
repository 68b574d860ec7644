"""What each kind of numbers promises."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowopt.verification.inputs.regimes import fitted, regimes_of

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHAPE = (5, 6, 40)
NAMES = tuple(regimes_of(torch.float32))
SPECIAL = {"nan": "nan", "infinity": "inf", "negative-infinity": "-inf"}


def numbers(name: str, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Tensor:
    return fitted(name, shape, torch.Generator().manual_seed(seed), dtype)


@pytest.mark.parametrize("dtype", (*DTYPES, torch.complex64, torch.complex128, torch.float8_e5m2))
@pytest.mark.parametrize("name", NAMES)
def test_they_fit_the_dtype_and_every_shape(name: str, dtype: torch.dtype) -> None:
    for shape in ((), (1,), (0, 3), (4, 1), (2, 3, 4, 4)):
        made = numbers(name, dtype, shape)
        assert made.dtype is dtype and tuple(made.shape) == shape
        if name not in SPECIAL:
            assert bool(made.to(torch.complex128).isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SPECIAL)
def test_one_number_is_special_and_it_is_in_the_first_sample(name: str, dtype: torch.dtype) -> None:
    made = numbers(name, dtype)
    assert [str(value) for value in made[~made.isfinite()].tolist()] == [SPECIAL[name]]
    assert not bool(made[0].isfinite().all())


CHECKS: dict[str, Callable[[Tensor], bool]] = {
    "uniform": lambda x: bool((x >= 0).all() and (x <= 1).all()) and float(x.std()) > 0.2,
    "negative": lambda x: bool((x < 0).all()),
    "large": lambda x: 20 < float(x.std()) < 40,
    "constant-rows": lambda x: bool((x == x[..., :1]).all() and (x[0] == x[0, 0, 0]).all()) and len(x.unique()) > 20,
    "zeros": lambda x: bool((x == 0).all()) and not bool(x.signbit().any()),
    "negative-zeros": lambda x: bool((x == 0).all() and x.signbit().all()),
    "halves": lambda x: bool((2 * x == (2 * x).round()).all()) and len(x.unique()) == 33,
    "outliers": lambda x: float(x.median().abs()) < 1 and float((x.abs() > 50).double().mean()) < 0.3,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CHECKS)
def test_what_they_are(name: str, dtype: torch.dtype) -> None:
    assert CHECKS[name](numbers(name, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_outliers_are_there(dtype: torch.dtype) -> None:
    assert float(numbers("outliers", dtype).abs().max()) > 500


@pytest.mark.parametrize(
    ("dtype", "largest"), [(torch.float32, 1e6), (torch.bfloat16, 1e6), (torch.float64, 1e6), (torch.float16, 8188.0)]
)
def test_rows_of_wide_scales(dtype: torch.dtype, largest: float) -> None:
    scales = numbers("wide-rows", dtype).to(torch.float64).abs().amax(-1)
    assert float(scales.max()) > largest
    assert 0 < float(scales.min()) < 1e-5


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1e4), (torch.float16, 8188.0)])
def test_huge_numbers_have_room_in_the_dtype(dtype: torch.dtype, scale: float) -> None:
    made = numbers("huge", dtype).to(torch.float64)
    assert 0.9 * scale < float(made.std()) < 1.1 * scale
    assert bool(made.isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_noise_on_an_offset_survives_the_dtype(dtype: torch.dtype) -> None:
    made = numbers("offset-noise", dtype).to(torch.float64)
    assert float(made.mean()) > 8000
    noise = made.std(-1)
    # Beside the noise, 8 steps, the rounding of the dtype is small; and the noise is small beside the offset.
    assert float(noise.min()) > 4 * torch.finfo(dtype).eps * 8192
    assert float(noise.max()) < 0.15 * float(made.mean())
    assert len(made.unique()) > 30


@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormals_are_subnormal_in_the_dtype(dtype: torch.dtype) -> None:
    made = numbers("subnormals", dtype).to(torch.float64)
    assert float(made.abs().max()) < torch.finfo(dtype).smallest_normal
    assert len(made.unique()) > 20 and bool((made < 0).any()) and bool((made > 0).any())


@pytest.mark.parametrize("dtype", DTYPES)
def test_tiny_numbers_are_normal_ones(dtype: torch.dtype) -> None:
    made = numbers("tiny", dtype).to(torch.float64)
    assert 0 < float(made.abs().median()) < 1e-3
    assert float(made.abs().median()) > torch.finfo(dtype).smallest_normal


def test_complex_numbers_have_two_parts() -> None:
    made = numbers("normal", torch.complex64)
    assert float(made.imag.std()) > 0.9 and not torch.equal(made.real, made.imag)


def test_float64_has_all_its_digits() -> None:
    made = numbers("normal", torch.float64)
    assert not torch.equal(made, made.to(torch.float32).to(torch.float64))


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides(name: str) -> None:
    assert torch.equal(numbers(name, seed=3).nan_to_num(), numbers(name, seed=3).nan_to_num())
    if "zeros" not in name:
        assert not torch.equal(numbers(name, seed=3).nan_to_num(), numbers(name, seed=4).nan_to_num())
