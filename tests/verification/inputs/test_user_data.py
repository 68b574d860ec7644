"""The user's arrays become cases when they fit, and are refused with what fits when they do not."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowopt.errors import MalformedModel, ModelNotFound, UserError
from flowopt.ir.quiet import quiet
from flowopt.program.capture import capture
from flowopt.program.from_exported import program_from_exported
from flowopt.program.program import Program, Provenance
from flowopt.verification.evidence import collect_evidence
from flowopt.verification.inputs.case import Case
from flowopt.verification.inputs.lossless import lossless
from flowopt.verification.inputs.user_data import user_cases
from tests.lowering import models as lowering_models


class Reader(nn.Module):
    """Ids, a mask, half-precision features of twice the length, and a float."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 4)

    def forward(self, ids: Tensor, mask: Tensor, half: Tensor, x: Tensor) -> Tensor:
        return self.embedding(ids) * mask.unsqueeze(-1) + half.float().reshape(ids.shape[0], -1, 4) + x


@cache
def program() -> Program:
    inputs = (
        torch.ones(3, 6, dtype=torch.int64),
        torch.ones(3, 6, dtype=torch.bool),
        torch.ones(3, 24, dtype=torch.bfloat16),
        torch.ones(4),
    )
    dynamic = {"ids": {0: "batch"}, "mask": {0: "batch"}, "half": {0: "batch"}}
    return capture(Reader().eval(), inputs, dynamic=dynamic, dims={"batch": (1, 8)})


def arrays(batch: int = 2, **changed: Any) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    made = {
        "ids": generator.integers(0, 50, (batch, 6)),
        "mask": generator.integers(0, 2, (batch, 6)).astype(bool),
        "half": generator.integers(-8, 8, (batch, 24)).astype(np.float32),
        "x": np.array([0.5, -0.0, 1e-45, np.inf], dtype=np.float32),
    }
    return {name: value for name, value in (made | changed).items() if value is not None}


def case(folder: Path, **changed: Any) -> Case:
    np.savez(folder / "case.npz", **arrays(**changed))
    (found,) = user_cases(program(), folder / "case.npz")
    return found


def refusal(folder: Path, **changed: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        case(folder, **changed)
    assert caught.value.message.startswith("case.npz: ")
    return caught.value


def test_a_file_is_a_natural_case_of_its_name_and_sizes(tmp_path: Path) -> None:
    found = case(tmp_path, batch=5)
    assert (found.label, found.regime, found.is_natural) == ("data:case.npz[batch=5]", "data", True)
    assert {name: value.dtype for name, value in found.inputs.items()} == {i.name: i.dtype for i in program().inputs}
    assert found.inputs["ids"].tolist() == arrays(5)["ids"].tolist()
    assert bool(torch.signbit(found.inputs["x"])[1]) and float(found.inputs["x"][2]) == np.float32(1e-45)


def test_the_original_runs_it(tmp_path: Path) -> None:
    evidence = collect_evidence(program(), cases=[case(tmp_path)])
    assert not evidence.skipped and evidence.cases[0].outputs["output"].own_error is not None


def test_a_folder_gives_its_files_in_natural_order_and_nothing_else(tmp_path: Path) -> None:
    for name in ("case10.npz", "case2.npz", "Case1.NPZ", "last.npz", ".hidden.npz", "note.txt", "2.npz"):
        with (tmp_path / name).open("wb") as file:
            np.savez(file, **arrays())
    (tmp_path / "inner.npz").mkdir()
    names = [found.name for found in user_cases(program(), tmp_path)]
    assert names == ["data:2.npz", "data:Case1.NPZ", "data:case2.npz", "data:case10.npz", "data:last.npz"]


def test_a_file_is_read_when_its_case_is_asked_for(tmp_path: Path) -> None:
    np.savez(tmp_path / "1.npz", **arrays())
    (tmp_path / "2.npz").write_bytes(b"none")
    found = user_cases(program(), tmp_path)
    assert next(found).name == "data:1.npz"
    with pytest.raises(MalformedModel, match="2.npz is no .npz file"):
        next(found)


def test_tensors_can_be_given_as_they_are() -> None:
    given = {name: torch.from_numpy(value) for name, value in arrays().items()}
    (found,) = user_cases(program(), given)
    assert found.label == "data:inputs[batch=2]"


@pytest.mark.parametrize("name", ["none.npz", "none"])
def test_no_such_file_or_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelNotFound, match=f"no file or folder .*{name}"):
        user_cases(program(), tmp_path / name)


def test_a_folder_without_files_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no .npz file"):
        user_cases(program(), tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ids", np.ones((2, 6), dtype=np.int32)),
        ("ids", np.ones((2, 6), dtype=np.uint64)),
        ("ids", np.ones((2, 6), dtype=bool)),
        ("mask", np.array([[0, 1] * 3] * 2)),
        ("half", np.ones((2, 24))),
        ("half", np.full((2, 24), np.nan, dtype=np.float16)),
        ("x", np.array([1, 2, np.inf, -0.0], dtype=np.float64)),
    ],
)
def test_another_dtype_is_taken_where_no_value_changes(tmp_path: Path, name: str, value: Any) -> None:
    found = case(tmp_path, **{name: value}).inputs[name]
    assert found.dtype == program().inputs[list(arrays()).index(name)].dtype
    assert np.array_equal(found.to(torch.float64).numpy(), value.astype(np.float64), equal_nan=True)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "ids",
            np.full((2, 6), 2**63, dtype=np.uint64),
            "ids is uint64, the model takes int64, and some of its values",
        ),
        ("mask", np.full((2, 6), 2), "mask is int64, the model takes bool, and some of its values"),
        ("half", np.full((2, 24), 1.001, dtype=np.float32), "half is float32, the model takes bfloat16, and some"),
        ("x", np.full(4, 0.1), "x is float64, the model takes float32, and some of its values do not exist in float32"),
        ("x", np.full(4, 1e300), "x is float64, the model takes float32, and some"),
        ("x", np.ones(4, dtype=np.int64), "x is int64, but the model takes float32"),
        ("ids", np.ones((2, 6), dtype=np.float32), "ids is float32, but the model takes int64"),
        ("x", np.ones(4, dtype=np.complex64), "x is complex64, but the model takes float32"),
        ("ids", np.ones((2, 7), dtype=np.int64), "axis 1 of ids is 7, but the model takes 6"),
        ("ids", np.ones(6, dtype=np.int64), "ids has 1 axes, but the model takes 2"),
        ("ids", np.ones((3, 6), dtype=np.int64), "'batch' is 3 at axis 0 of ids and 2 at axis 0 of mask"),
        ("ids", np.ones((9, 6), dtype=np.int64), "axis 0 of ids is 9, but the model takes 1 to 8 for 'batch'"),
        ("ids", np.ones((0, 6), dtype=np.int64), "axis 0 of ids is 0, but the model takes 1 to 8 for 'batch'"),
        ("more", np.ones(2), "arrays that are no inputs: more"),
        ("a\x1b[2J", np.ones(2), r"arrays that are no inputs: a\x1b[2J"),
        ("ids", None, "missing inputs: ids"),
        ("override.none", np.ones(2), "override.none names no tensor inside the model"),
    ],
)
def test_what_does_not_fit_is_named_with_what_does(tmp_path: Path, name: str, value: Any, message: str) -> None:
    refused = refusal(tmp_path, **{name: value})
    assert message in refused.message
    assert refused.hint


def test_the_way_to_round_is_told(tmp_path: Path) -> None:
    assert refusal(tmp_path, x=np.full(4, 0.1)).hint == "round them first: x.astype('float32')"
    hint = refusal(tmp_path, half=np.full((2, 24), 0.1)).hint.removeprefix("round them first: ")
    x = np.full((2, 24), 0.1)
    rounded = eval(hint, {"torch": torch, "x": x})  # the hint is the line to run
    assert case(tmp_path, half=rounded).inputs["half"].dtype is torch.bfloat16


def test_the_hint_says_what_the_model_takes(tmp_path: Path) -> None:
    assert refusal(tmp_path, ids=None).hint == (
        "the model takes ids: int64[batch, 6]; mask: bool[batch, 6]; half: bfloat16[batch, 24]; x: float32[4]"
    )


def test_many_foreign_arrays_are_counted(tmp_path: Path) -> None:
    assert (
        "x0, x1, x10, x11, x12, x13, x14, x15 and 22 more" in refusal(tmp_path, **dict.fromkeys(foreign(), 1)).message
    )


def foreign() -> list[str]:
    return [f"x{i}" for i in range(30)]


def test_a_size_that_is_derived_from_another_is_checked(tmp_path: Path) -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y.reshape(x.shape[0], 2)

    batch = torch.export.Dim("batch", min=1, max=20)
    x, y = torch.ones(3, 2), torch.ones(6)
    exported = torch.export.export(Halves(), (x, y), dynamic_shapes={"x": {0: batch}, "y": {0: 2 * batch}})
    original = program_of(exported)
    good, bad = ({"x": torch.ones(5, 2), "y": torch.ones(size)} for size in (10, 11))
    assert next(user_cases(original, good)).sizes == {original.dims[0].name: 5}
    with pytest.raises(UserError, match=r"y is \[11\], but at these sizes the model takes \[10\]"):
        user_cases(original, bad)


def program_of(exported: Any) -> Program:
    with quiet():
        return program_from_exported(exported.run_decompositions({}), {}, Provenance("test", torch.__version__))


def test_state_may_be_left_out_or_given(tmp_path: Path) -> None:
    original = lowering_models.counter()
    x = np.ones((2, 300), dtype=np.float32)
    np.savez(tmp_path / "without.npz", x=x)
    np.savez(tmp_path / "with.npz", x=x, state_calls=np.int64(7))
    given, stored = user_cases(original, tmp_path)
    assert (int(given.inputs["state_calls"]), int(stored.inputs["state_calls"])) == (7, 0)
    assert stored.inputs["state_total"].shape == (300,)


def test_a_tensor_inside_the_model_can_be_replaced(tmp_path: Path) -> None:
    found = case(tmp_path, **{"override.embedding": np.full((2, 6, 4), np.nan, dtype=np.float32)})
    assert list(found.overrides) == ["embedding"] and not found.is_natural
    assert bool(torch.isnan(collect_evidence(program(), cases=[found]).cases[0].outputs["output"].original).all())
    message = refusal(tmp_path, **{"override.embedding": np.ones((2, 5, 4), dtype=np.float32)}).message
    assert "override.embedding is [2, 5, 4], but at these sizes the model takes [2, 6, 4]" in message


@pytest.mark.parametrize(
    ("value", "dtype", "fits"),
    [
        (torch.tensor([-1]), torch.uint64, False),
        (torch.tensor([-1], dtype=torch.int8), torch.uint8, False),
        (torch.tensor([2**63 - 1]), torch.uint64, True),
        (torch.tensor([300]), torch.int8, False),
        (torch.tensor([], dtype=torch.int64), torch.int8, True),
        (torch.tensor([float("inf")]), torch.float8_e4m3fn, False),
        (torch.tensor([-0.0]), torch.float8_e4m3fnuz, False),
        (torch.tensor([0.5, -448.0]), torch.float8_e4m3fn, True),
        (torch.tensor([1 + 2j]), torch.complex128, True),
        (torch.tensor([0.1 + 2j], dtype=torch.complex128), torch.complex64, False),
        (torch.tensor([1.0]), torch.complex64, False),
    ],
)
def test_a_cast_keeps_every_value_or_is_none(value: Tensor, dtype: torch.dtype, fits: bool) -> None:
    cast = lossless(value, dtype)
    assert (cast is not None) == fits
    assert cast is None or (cast.dtype == dtype and torch.equal(cast.to(value.dtype), value))
