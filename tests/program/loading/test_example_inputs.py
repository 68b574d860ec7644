import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from flowopt.errors import MalformedModel, ModelNotFound, UserError
from flowopt.program.capture import capture
from flowopt.program.loading import npz as npz_module
from flowopt.program.loading.example_inputs import example_inputs, suggested_shapes


class Runs:
    """A pickle of it makes a folder when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


class TestMade:
    def test_integers_lie_in_their_range_and_reach_both_ends(self) -> None:
        ids = example_inputs({"ids": "50x4:int32[3..5]"}, None)["ids"]
        assert ids.dtype is torch.int32
        assert tuple(ids.shape) == (50, 4)
        assert (int(ids.min()), int(ids.max())) == (3, 5)

    @pytest.mark.parametrize("name", ["float16", "bfloat16", "float64", "complex64", "complex128", "bool", "uint8"])
    def test_every_dtype_is_made(self, name: str) -> None:
        made = example_inputs({"x": f"64:{name}"}, None)["x"]
        assert made.dtype is getattr(torch, name)
        assert len(set(made.tolist())) > 1

    def test_a_scalar_has_no_axis(self) -> None:
        assert example_inputs({"t": "scalar"}, None)["t"].shape == ()

    def test_the_same_seed_makes_the_same_numbers(self) -> None:
        first, again, other = (example_inputs({"x": "9"}, None, seed=seed)["x"] for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


class TestStored:
    def test_arrays_come_by_name_with_shape_and_dtype(self, tmp_path: Path) -> None:
        arrays = {"x": np.arange(6.0).reshape(2, 3).T, "t": np.float32(0.5), "mask": np.array([True, False])}
        np.savez(tmp_path / "inputs.npz", **arrays)  # type: ignore[arg-type]  # its annotation means allow_pickle
        found = example_inputs({"ids": "4:int64"}, tmp_path / "inputs.npz")
        assert set(found) == {"x", "t", "mask", "ids"}
        assert (tuple(found["x"].shape), found["x"].dtype, found["x"].is_contiguous()) == ((3, 2), torch.float64, True)
        assert (found["t"].shape, float(found["t"])) == ((), 0.5)
        assert found["mask"].tolist() == [True, False]

    def test_tensors_are_taken_as_they_are(self) -> None:
        x = torch.ones(2)
        assert example_inputs({}, {"x": x})["x"] is x

    def test_arrays_of_objects_are_refused_without_running_code(self, tmp_path: Path) -> None:
        marker = tmp_path / "marker"
        array = np.array([Runs(marker)], dtype=object)
        np.savez(tmp_path / "inputs.npz", x=array)
        with pytest.raises(MalformedModel, match="no .npz file of plain arrays"):
            example_inputs({}, tmp_path / "inputs.npz")
        assert not marker.exists()
        # The same file runs its code where that is allowed: the test above can fail.
        np.load(tmp_path / "inputs.npz", allow_pickle=True)["x"]
        assert marker.exists()

    def test_an_input_that_is_given_twice(self) -> None:
        with pytest.raises(UserError, match="'x' is given twice"):
            example_inputs({"x": "2"}, {"x": torch.ones(2)})

    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFound, match="no file") as caught:
            example_inputs({}, tmp_path / "none.npz")
        assert "numpy.savez" in caught.value.hint

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (lambda: pickle.dumps([1]), "pickle"),
            (lambda: npy(np.ones(3)), "no arrays by name"),
            (lambda: npz(names=npy(np.array(["a"]))), "names is an array of <U1, not of numbers"),
            (lambda: zipped("data.pkl", b"x" * 40), "data.pkl is no array"),
            (lambda: npz(x=npy(np.ones(9)))[:-60], "zip"),
            (lambda: npz(x=npy(np.ones(9))[:-8]), "array"),
            (lambda: b"", "No data left in file"),
            (lambda: npz(x=header("'<f4', 'fortran_order': False, 'shape': (1099511627776,)")), "allocate"),
            (lambda: npz(x=header("'<f4', ((((")), "multi-line"),
            (lambda: changed(npz(x=npy(np.ones(9))), flags=1), "encrypted"),
            (lambda: changed(npz(x=b"\xff" * 40), method=8), "decompressing"),
        ],
    )
    def test_another_file_is_said_to_be_none(self, tmp_path: Path, content: Callable[[], bytes], why: str) -> None:
        (tmp_path / "inputs.npz").write_bytes(content())
        with pytest.raises(MalformedModel, match="inputs.npz is no .npz file of plain arrays") as caught:
            example_inputs({}, tmp_path / "inputs.npz")
        assert why in caught.value.why
        assert "numpy.savez" in caught.value.hint

    def test_what_unpacks_to_very_much_more_is_refused_unread(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(npz_module, "_MOST_UNPACKED_BYTES", 1 << 20)
        np.savez_compressed(tmp_path / "inputs.npz", x=np.zeros(1 << 20))
        with pytest.raises(MalformedModel) as caught:
            example_inputs({}, tmp_path / "inputs.npz")
        assert "it would unpack to 8,388,7" in caught.value.why


def header(description: str) -> bytes:
    text = f"{{'descr': {description}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def changed(archive: bytes, *, flags: int = 0, method: int = 0) -> bytes:
    """The flags and the method of a zip archive of one member, in both of its headers."""
    raw, entry = bytearray(archive), archive.index(b"PK\x01\x02")
    for at in (6, entry + 8):
        raw[at : at + 4] = flags.to_bytes(2, "little") + method.to_bytes(2, "little")
    return bytes(raw)


def npy(array: "np.ndarray[tuple[int], np.dtype[np.generic]]") -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


class Wrapped(nn.Module):
    """A layer that is not the model itself, behind one that has no weights."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.quiet = nn.Dropout()
        self.layer = layer

    def forward(self, x: Tensor) -> object:
        return self.layer(self.quiet(x) if x.is_floating_point() else x)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(7, 2), "1x7"),
        (nn.Conv1d(3, 2, 2), "1x3x64"),
        (nn.Conv2d(5, 2, 2), "1x5x224x224"),
        (nn.ConvTranspose2d(5, 2, 2), "1x5x224x224"),
        (nn.Embedding(30, 4), "1x16:int64[0..29]"),
        (nn.EmbeddingBag(30, 4), "1x16:int64[0..29]"),
        (nn.LSTM(6, 4), "1x16x6"),
        (nn.GRU(6, 4, batch_first=True), "1x16x6"),
        (nn.LayerNorm((4, 9)), "1x16x4x9"),
        (nn.BatchNorm1d(8), "1x8"),
        (nn.BatchNorm2d(8), "1x8x16x16"),
        (nn.BatchNorm3d(8), "1x8x16x16x16"),
        (nn.ReLU(), "1x16"),
    ],
)
def test_a_suggestion_fits_the_first_layer_with_weights(layer: nn.Module, shape: str) -> None:
    model = Wrapped(layer).eval()
    assert suggested_shapes(model) == (("x", shape),)
    model(**example_inputs(dict(suggested_shapes(model)), None))


def test_a_suggestion_names_every_input_that_is_required() -> None:
    class TwoInputs(nn.Module):
        def forward(self, left: Tensor, attention_mask: Tensor, *, right: Tensor, scale: float = 1.0) -> Tensor:
            return scale * (left + right) * attention_mask

    assert suggested_shapes(TwoInputs()) == (
        ("left", "1x16"),
        ("attention_mask", "1x16:int64[1..1]"),
        ("right", "1x16"),
    )


def test_a_forward_without_names_has_no_suggestion() -> None:
    class Anything(nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return tensors[0]

    assert suggested_shapes(Anything()) == ()


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (
            lambda: transformers.BertModel(
                transformers.BertConfig(
                    vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
                )
            ),
            (("input_ids", "1x16:int64[0..39]"),),
        ),
        (
            lambda: transformers.ViTModel(
                transformers.ViTConfig(
                    hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, patch_size=56
                )
            ),
            (("pixel_values", "1x3x224x224"),),
        ),
    ],
)
def test_a_library_model_is_captured_with_what_is_suggested(
    make: Callable[[], nn.Module], shapes: tuple[tuple[str, str], ...]
) -> None:
    model = make().eval()
    assert suggested_shapes(model) == shapes
    assert capture(model, (), example_inputs(dict(shapes), None)).inputs[0].name == shapes[0][0]
