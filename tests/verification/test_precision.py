"""Verification computes in the precision that dtypes say, and leaves every setting as it found it."""

import contextlib
import math
import sys
import threading
import timeit
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from flowopt.verification.precision import describe, strict_float32

STRICT = {
    "tf32": "off",
    "reduced_precision_sums": "off",
    "float16_accumulation": "off",
    "autocast": "off",
    "denormals": "kept",
    "cudnn_benchmark": "off",
}
KEYS = [("generic", "all"), *((b, o) for b in ("cuda", "mkldnn") for o in ("all", "matmul", "conv", "rnn"))]
MATMUL: Any = torch.backends.cuda.matmul

write = torch._C._set_fp32_precision_setter
read = torch._C._get_fp32_precision_getter


def effective() -> dict[str, object]:
    """Every setting that a getter shows."""
    return {
        **describe(),
        **{f"{backend} {operator}": read(backend, operator) for backend, operator in KEYS},
        "splits": (
            MATMUL.allow_fp16_reduced_precision_reduction_split_k,
            MATMUL.allow_bf16_reduced_precision_reduction_split_k,
        ),
    }


def inherited() -> list[str]:
    """What each product and convolution becomes when only the topmost setting says something."""
    found = []
    before = {key: read(*key) for key in KEYS}
    for value in ("none", "ieee"):
        write("generic", "all", value)
        found += [read(*key) for key in KEYS]
    write("generic", "all", before["generic", "all"])
    return found


@contextlib.contextmanager
def fresh() -> Iterator[None]:
    """The settings of a new process but for cuDNN's own value, which nothing can bring back; restored afterwards."""
    denormals, benchmark = sys.float_info.min * 0.5 == 0.0, torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        for backend, operator in KEYS:
            if operator in ("all", "matmul"):
                write(backend, operator, "none")
        MATMUL.allow_fp16_reduced_precision_reduction = MATMUL.allow_bf16_reduced_precision_reduction = True
        MATMUL.allow_fp16_accumulation = False
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(False)
        torch.backends.cudnn.benchmark = benchmark
        torch.set_flush_denormal(denormals)


def everything_off() -> None:
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    MATMUL.allow_fp16_accumulation = True
    torch.set_flush_denormal(True)


def both_ways_at_once() -> None:
    torch.set_float32_matmul_precision("medium")
    write("cuda", "matmul", "none")


def newer_than_older() -> None:
    torch.set_float32_matmul_precision("high")
    write("mkldnn", "matmul", "bf16")


# Each leaves float32 less precise, by the older functions, by the newer ones, or by both.
CHANGES: dict[str, Callable[[], object]] = {
    "medium products": lambda: torch.set_float32_matmul_precision("medium"),
    "high products": lambda: torch.set_float32_matmul_precision("high"),
    "TF32 for cuBLAS": lambda: setattr(MATMUL, "allow_tf32", True),
    "TF32 everywhere": lambda: write("generic", "all", "tf32"),
    "bfloat16 everywhere": lambda: write("generic", "all", "bf16"),
    "TF32 for one backend": lambda: write("cuda", "all", "tf32"),
    "bfloat16 for products of the CPU": lambda: write("mkldnn", "matmul", "bf16"),
    "both ways at once": both_ways_at_once,
    "newer than older": newer_than_older,
    "sums of 16 bits": lambda: torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True),
    "no split sums": lambda: setattr(MATMUL, "allow_fp16_reduced_precision_reduction", (False, False)),
    "float16 accumulators": lambda: setattr(MATMUL, "allow_fp16_accumulation", True),
    "cuDNN benchmarks": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "flushed denormals": lambda: torch.set_flush_denormal(True),
    "everything": everything_off,
    "nothing": lambda: None,
}


@pytest.mark.parametrize("name", CHANGES)
def test_everything_is_strict_inside_and_as_before_outside(name: str) -> None:
    with fresh():
        CHANGES[name]()
        before, below = effective(), inherited()
        with strict_float32():
            assert describe() == STRICT
            assert torch.get_float32_matmul_precision() == "highest"
            assert not {read(*key) for key in KEYS} & {"tf32", "bf16"}
        assert effective() == before
        assert inherited() == below


def test_what_the_older_functions_remember_is_restored() -> None:
    with fresh():
        for precision in ("medium", "high", "highest"):
            torch.set_float32_matmul_precision(precision)
            with strict_float32():
                assert torch.get_float32_matmul_precision() == "highest"
                assert torch.backends.cuda.matmul.allow_tf32 is False
            assert torch.get_float32_matmul_precision() == precision


def test_settings_come_back_when_the_body_raises() -> None:
    with fresh():
        everything_off()
        before = effective()
        with pytest.raises(ZeroDivisionError), strict_float32():
            _ = 1 / 0
        assert effective() == before != STRICT


def test_it_may_be_entered_within_itself() -> None:
    with fresh():
        torch.set_float32_matmul_precision("medium")
        before = effective()
        with strict_float32():
            with strict_float32():
                assert describe() == STRICT
            assert describe() == STRICT
        assert effective() == before


def test_a_thread_that_leaves_first_does_not_loosen_another() -> None:
    """The first to enter leaves first: its settings may not come back under the second."""
    entered, left, seen = threading.Event(), threading.Event(), list[dict[str, str]]()

    def second() -> None:
        with strict_float32():
            entered.set()
            left.wait(10)
            seen.append(describe())

    with fresh():
        torch.set_float32_matmul_precision("medium")
        before = effective()
        other = threading.Thread(target=second)
        with strict_float32():
            other.start()
            assert entered.wait(10)
        left.set()
        other.join(10)
        assert seen == [STRICT]
        assert effective() == before


def product(x: Tensor) -> Tensor:
    return x @ x.T


def test_products_do_not_depend_on_the_settings_outside() -> None:
    # "medium" sends products to oneDNN and lets it use bfloat16; where it does not, bits differ all the same.
    x = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    with fresh(), strict_float32():
        wanted = product(x)
    with fresh():
        torch.set_float32_matmul_precision("medium")
        with strict_float32():
            found = product(x)
    assert torch.equal(found, wanted)
    oracle = product(x.double())
    # 512 products of 24 bits; with factors of 8 bits the error is 2e-3 of the largest.
    assert float((found - oracle).abs().max() / oracle.abs().max()) < 1e-6


def test_autocast_stops_inside() -> None:
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert product(x).dtype is torch.bfloat16
        assert describe()["autocast"] == "on: cpu"
        with strict_float32():
            assert product(x).dtype is torch.float32
        assert product(x).dtype is torch.bfloat16


def test_denormals_survive_inside() -> None:
    smallest = torch.tensor([torch.finfo(torch.float32).smallest_normal])
    with fresh():
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor cannot flush denormals")
        assert float(smallest * 0.5) == 0.0 and describe()["denormals"] == "flushed"
        with strict_float32():
            assert math.isclose(float(smallest * 0.5), torch.finfo(torch.float32).smallest_normal / 2)
        assert float(smallest * 0.5) == 0.0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_modes_of_gradients_stay(mode: Callable[[], Any]) -> None:
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        with strict_float32():
            assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before


def test_determinism_and_the_default_dtype_stay() -> None:
    try:
        torch.use_deterministic_algorithms(True)
        torch.set_default_dtype(torch.float64)
        with strict_float32():
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.get_default_dtype() is torch.float64
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_default_dtype(torch.float32)


def test_entering_costs_no_time() -> None:
    def enter() -> None:
        with strict_float32():
            pass

    # 30 microseconds where measured; a thousand would show beside the run of a small model.
    assert min(timeit.repeat(enter, number=100, repeat=5)) / 100 < 1e-3
