"""Files of arrays of an unknown author: what is refused beyond what ``example_inputs`` is tested with."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from flowopt.errors import MalformedModel
from flowopt.program.loading.npz import read_npz


def npy(value: float) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([value]))
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["x.npy", "x"])
def test_two_arrays_of_one_name_are_refused(tmp_path: Path, second: str) -> None:
    path = tmp_path / "inputs.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", npy(1.0))
        archive.writestr(second, npy(2.0))
    with pytest.raises(MalformedModel) as caught:
        read_npz(path)
    assert caught.value.why == "two of its arrays are called x"


def test_arrays_of_the_other_byte_order_hold_the_same_numbers(tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", x=np.array([1.5, -2.0], dtype=">f4"), ids=np.array([3, 4], dtype=">i8"))
    found = read_npz(tmp_path / "inputs.npz")
    assert torch.equal(found["x"], torch.tensor([1.5, -2.0])) and torch.equal(found["ids"], torch.tensor([3, 4]))


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="numpy has no wider float here")
def test_numbers_that_torch_lacks_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", x=np.ones(2, dtype=np.longdouble))
    with pytest.raises(MalformedModel) as caught:
        read_npz(tmp_path / "inputs.npz")
    assert f"x is an array of {np.dtype(np.longdouble)}, which torch does not have" in caught.value.why


def test_a_name_cannot_reach_the_terminal_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2Jb.npz"
    path.write_bytes(b"nothing")
    with pytest.raises(MalformedModel) as caught:
        read_npz(path)
    assert r"a\x1b[2Jb.npz is no .npz file" in caught.value.message
