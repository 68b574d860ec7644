"""What is saved replays, bit for bit; and which case is saved."""

import errno
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flowopt.errors import CannotWrite
from flowopt.program.capture import capture
from flowopt.program.loading.npz import read_npz
from flowopt.program.program import Program
from flowopt.report.verdict import Figures, Finding, Outcome, Verdict
from flowopt.verification.behaviour.equal_bits import same_bits
from flowopt.verification.evidence import collect_evidence
from flowopt.verification.inputs.case import Case
from flowopt.verification.inputs.cases import quick_cases
from flowopt.verification.inputs.reproducer import save_reproducer, worst_case
from flowopt.verification.inputs.user_data import user_cases
from flowopt.verification.verify_outputs import verify_outputs
from tests.lowering import models as lowering_models
from tests.verification.substitute import captured

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
FLOATS += [torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8]
COMPLEX = [torch.complex128, torch.complex64, torch.complex32]


DTYPES = [*FLOATS, *INTEGERS, *COMPLEX, torch.bool]


class Passing(nn.Module):
    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        return {name: value.reshape(-1) for name, value in inputs.items()}


@cache
def passing(*dtypes: torch.dtype) -> Program:
    """A program with an input of each dtype, called ``x_<dtype>``."""
    return capture(Passing().eval(), (), {input_name(dtype): torch.zeros(5, 2).to(dtype) for dtype in dtypes})


def input_name(dtype: torch.dtype) -> str:
    return f"x_{str(dtype).removeprefix('torch.')}"


def extremes(dtype: torch.dtype) -> Tensor:
    """Ten values, of all kinds that the dtype has."""
    if dtype is torch.bool:
        return torch.tensor([True, False] * 5)
    if not (dtype.is_floating_point or dtype.is_complex):
        limits = torch.iinfo(dtype)
        return torch.tensor([limits.min, limits.max, 0, 1, 7] * 2, dtype=dtype)
    if dtype.is_complex:
        part = {torch.complex128: torch.float64, torch.complex64: torch.float32}.get(dtype, torch.float16)
        return torch.view_as_complex(torch.stack((extremes(part), extremes(part).flip(0)), dim=-1))
    known = torch.finfo(dtype)
    smallest = known.smallest_normal
    values = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, smallest, smallest / 2, known.max, known.min, -1.5]
    return torch.tensor(values, dtype=torch.float64).to(dtype)


def replayed(path: Path, case: Case, program: Program) -> Case:
    save_reproducer(path, case, program)
    (found,) = user_cases(program, path)
    return found


@pytest.mark.filterwarnings("ignore:ComplexHalf support")
def test_every_value_of_every_dtype_comes_back(tmp_path: Path) -> None:
    inputs = {input_name(dtype): extremes(dtype).reshape(2, 5).T for dtype in DTYPES}
    found = replayed(tmp_path / "worst.npz", Case("special", {}, inputs), passing(*DTYPES))
    assert {name: same_bits(value, inputs[name]) for name, value in found.inputs.items()} == dict.fromkeys(inputs, True)


def test_sizes_are_found_again(tmp_path: Path) -> None:
    case = quick_cases(captured(torch.sin), 0)[2]
    found = replayed(tmp_path / "worst.npz", case, captured(torch.sin))
    assert (found.label, found.sizes) == ("data:worst.npz[batch=3,sequence=5]", case.sizes)


def test_empty_inputs_and_scalars_come_back(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x + t

    program = capture(Sum().eval(), (torch.ones(3, 0), torch.tensor(2.0)), dynamic={"x": {0: "n"}})
    case = Case("smallest", {"n": 1}, {"x": torch.ones(1, 0), "t": torch.tensor(3.0)})
    found = replayed(tmp_path / "worst.npz", case, program)
    assert found.inputs["x"].shape == (1, 0) and found.inputs["t"].shape == () and float(found.inputs["t"]) == 3.0


def test_numbers_that_take_the_place_of_a_node_come_back(tmp_path: Path) -> None:
    program = lowering_models.tied()
    injected = next(case for case in quick_cases(program, 0) if case.overrides)
    found = replayed(tmp_path / "worst.npz", injected, program)
    assert found.overrides.keys() == injected.overrides.keys() == {"embedding"}
    assert same_bits(found.overrides["embedding"], injected.overrides["embedding"])
    assert same_bits(found.inputs["ids"], injected.inputs["ids"])


def test_state_comes_back(tmp_path: Path) -> None:
    program = lowering_models.counter()
    case = quick_cases(program, 0)[1]
    found = replayed(tmp_path / "worst.npz", case, program)
    assert {name: same_bits(value, case.inputs[name]) for name, value in found.inputs.items()} == dict.fromkeys(
        case.inputs, True
    )


def test_a_conjugated_view_comes_back_as_its_values(tmp_path: Path) -> None:
    x = extremes(torch.complex64).reshape(5, 2).conj()
    case = Case("special", {}, {"x_complex64": x})
    found = replayed(tmp_path / "worst.npz", case, passing(torch.complex64))
    assert same_bits(found.inputs["x_complex64"], x.resolve_conj())


def test_the_same_case_gives_the_same_bytes_and_no_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = quick_cases(captured(torch.sin), 0)[3]
    save_reproducer(tmp_path / "first.npz", case, captured(torch.sin))
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setattr("time.localtime", lambda *_: (2033, 5, 18, 0, 0, 0, 0, 0, 0))
    save_reproducer(tmp_path / "second.npz", case, captured(torch.sin))
    content = (tmp_path / "first.npz").read_bytes()
    assert content == (tmp_path / "second.npz").read_bytes()
    assert read_npz(tmp_path / "first.npz").keys() == {"x"}


def test_the_verdict_of_the_replay_is_the_same(tmp_path: Path) -> None:
    program = captured(torch.sin)
    evidence = collect_evidence(program)

    def swallowing(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"output": torch.nan_to_num(program.run_named(inputs)["output"])}

    verdict = verify_outputs(evidence, swallowing)  # type: ignore[arg-type]  # it takes any mapping
    worst = worst_case(verdict, evidence)
    assert worst is not None and worst.name == "special"
    again = collect_evidence(program, cases=[replayed(tmp_path / "worst.npz", worst, program)])
    (finding,) = verify_outputs(again, swallowing).findings  # type: ignore[arg-type]
    assert replace(finding, case="") == replace(verdict.findings[0], case="")


class TestWorst:
    def figures(self, label: str, ratio: float) -> Figures:
        return Figures("output", label, 0.0, 0.0, ratio, None, 0.0)

    def worst(self, findings: list[str], ratios: dict[str, float]) -> str | None:
        evidence = collect_evidence(captured(torch.sin))
        labels = {known.case.name: known.case.label for known in evidence.cases}
        verdict = Verdict(
            Outcome.DIFFERENT,
            tuple(Finding("ratio", "output", labels.get(name, name), "") for name in findings),
            tuple(self.figures(labels[name], ratio) for name, ratio in ratios.items()),
        )
        found = worst_case(verdict, evidence)
        return found.name if found is not None else None

    def test_is_that_of_the_first_finding(self) -> None:
        assert self.worst(["prime", "traced"], {"traced": 5.0}) == "prime"

    def test_passes_over_findings_without_a_case(self) -> None:
        assert self.worst(["float64 twin", "smallest"], {"traced": 5.0}) == "smallest"
        assert self.worst(["float64 twin"], {"traced": 5.0}) is None

    def test_is_that_of_the_largest_ratio_without_findings(self) -> None:
        assert self.worst([], {"traced": 0.2, "prime": 0.9, "special": 0.1}) == "prime"
        assert self.worst([], {"traced": 0.2, "prime": float("nan"), "special": 0.1}) == "prime"

    def test_is_none_when_nothing_ran(self) -> None:
        assert self.worst([], {}) is None


class TestWriting:
    def case(self) -> Case:
        return quick_cases(captured(torch.sin), 0)[0]

    def test_replaces_a_file_and_leaves_nothing_else(self, tmp_path: Path) -> None:
        (tmp_path / "worst.npz").write_bytes(b"old")
        save_reproducer(tmp_path / "worst.npz", self.case(), captured(torch.sin))
        assert [path.name for path in tmp_path.iterdir()] == ["worst.npz"]
        assert read_npz(tmp_path / "worst.npz").keys() == {"x"}

    @pytest.mark.parametrize("where", ["none/worst.npz", "folder"])
    def test_says_that_it_cannot(self, tmp_path: Path, where: str) -> None:
        (tmp_path / "folder").mkdir()
        with pytest.raises(CannotWrite, match="cannot write"):
            save_reproducer(tmp_path / where, self.case(), captured(torch.sin))
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]

    def test_keeps_the_old_file_when_the_disk_is_full(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "worst.npz").write_bytes(b"old")

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            save_reproducer(tmp_path / "worst.npz", self.case(), captured(torch.sin))
        assert [path.name for path in tmp_path.iterdir()] == ["worst.npz"]
        assert (tmp_path / "worst.npz").read_bytes() == b"old"
