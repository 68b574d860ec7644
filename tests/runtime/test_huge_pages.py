"""Huge pages: weights move into them where the system has them, and nothing else changes."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flowopt.runtime import huge_pages
from flowopt.runtime.artifact import Artifact
from flowopt.runtime.huge_pages import in_huge_pages
from tests.lowering import models
from tests.lowering.build import build
from tests.passes.programs import Written

_COLLAPSES_SINCE = (6, 1)
_RELEASE = tuple(int(part) for part in platform.release().split(".")[:2] if part.isdigit())
_HAS_THEM = sys.platform == "linux" and huge_pages._huge_page_size() is not None and _RELEASE >= _COLLAPSES_SINCE
_MEASURE = """
import sys
from flowopt.runtime.artifact import Artifact
artifact = Artifact.open(sys.argv[1], huge_pages=sys.argv[2] == "True")
artifact._its_runner()
lines = open("/proc/self/smaps_rollup").read().splitlines()
print(next(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages")))
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of 16 MiB."""
    folder = tmp_path_factory.mktemp("wide") / "artifact"
    module = Written(lambda m, x: m.b(m.a(x).sin()), a=nn.Linear(1024, 2048), b=nn.Linear(2048, 1024))
    build(models.program(module, torch.randn(2, 1024)), folder)
    return folder


def kibibytes(folder: Path, *, wanted: bool) -> int:
    command = [sys.executable, "-c", _MEASURE, str(folder), str(wanted)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not _HAS_THEM, reason="the system has no huge pages on demand")
def test_weights_lie_in_huge_pages_unless_it_is_not_wanted(wide: Path) -> None:
    assert kibibytes(wide, wanted=True) - kibibytes(wide, wanted=False) >= 8 * 1024


def test_outputs_are_the_same_bit_for_bit(wide: Path) -> None:
    x = torch.randn(2, 1024, generator=torch.Generator().manual_seed(0))
    outputs = [Artifact.open(wide, huge_pages=wanted).run(x) for wanted in (True, False)]
    assert all(isinstance(output, torch.Tensor) for output in outputs)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)


@pytest.mark.parametrize("enabled", ["always madvise [never]\n", None], ids=["switched off", "another system"])
def test_without_huge_pages_nothing_is_done(
    enabled: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if enabled is not None:
        (tmp_path / "enabled").write_text(enabled)
        (tmp_path / "hpage_pmd_size").write_text("2097152\n")
    monkeypatch.setattr(huge_pages, "_SETTINGS", tmp_path)
    monkeypatch.setattr(huge_pages, "_collapse", lambda *_: pytest.fail("asked the kernel"))
    with in_huge_pages():
        held = torch.ones(1 << 22)
    assert held.sum() == 1 << 22


def test_a_kernel_that_refuses_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    (tmp_path / "hpage_pmd_size").write_text("2097152\n")
    monkeypatch.setattr(huge_pages, "_SETTINGS", tmp_path)
    monkeypatch.setattr(huge_pages, "_MADV_COLLAPSE", -1)
    with in_huge_pages():
        held = torch.ones(1 << 22)
    assert held.sum() == 1 << 22


_regions = st.lists(st.integers(0, 60), max_size=8, unique=True).map(
    lambda ends: [(a, b) for a, b in zip(sorted(ends)[::2], sorted(ends)[1::2], strict=False)]
)


@given(regions=_regions, others=_regions)
def test_the_difference_of_regions_is_that_of_sets(
    regions: list[tuple[int, int]], others: list[tuple[int, int]]
) -> None:
    def addresses(of: list[tuple[int, int]]) -> list[int]:
        return [address for start, end in of for address in range(start, end)]

    found = list(huge_pages._without(regions, others))
    assert addresses(found) == sorted(set(addresses(regions)) - set(addresses(others)))
    assert all(start < end for start, end in found)
