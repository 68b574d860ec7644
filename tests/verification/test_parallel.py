from collections.abc import Iterator, Sequence

import pytest
import torch

from flowopt.verification.parallel import in_parallel


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def squares(share: Sequence[int]) -> list[int]:
    return [one * one for one in share]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 7, 20])
def test_results_come_in_the_order_of_the_items(count: int) -> None:
    assert in_parallel(squares, range(count), raised=False) == [one * one for one in range(count)]


def test_shares_run_on_workers_with_one_thread_each() -> None:
    seen: list[int] = []

    def run(share: Sequence[int]) -> list[int]:
        seen.append(torch.get_num_threads())
        return list(share)

    in_parallel(run, range(8), raised=False)
    assert seen == [1, 1]
    assert torch.get_num_threads() == 2


def test_the_default_dtype_is_float64_in_every_worker_and_float32_again() -> None:
    seen: list[torch.dtype] = []

    def run(share: Sequence[int]) -> list[int]:
        seen.append(torch.get_default_dtype())
        return list(share)

    in_parallel(run, range(8), raised=True)
    assert seen == [torch.float64, torch.float64]
    assert torch.get_default_dtype() is torch.float32


def test_an_error_of_a_worker_is_raised_and_everything_restored() -> None:
    def run(share: Sequence[int]) -> list[int]:
        raise KeyError("a defect")

    with pytest.raises(KeyError, match="a defect"):
        in_parallel(run, range(8), raised=True)
    assert torch.get_default_dtype() is torch.float32
    assert torch.get_num_threads() == 2


def test_one_allowed_thread_means_no_worker() -> None:
    torch.set_num_threads(1)
    shares: list[int] = []

    def run(share: Sequence[int]) -> list[int]:
        shares.append(len(share))
        return list(share)

    in_parallel(run, range(8), raised=False)
    assert shares == [8]
