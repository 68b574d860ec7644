"""Weights without a graph, put into the module of a factory; the trial in a process of its own is tested once."""

import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from flowopt.errors import FlowoptError, MalformedModel, Untrusted, UserError
from flowopt.program.loading import weights_file
from flowopt.program.loading.load import load
from flowopt.program.program import Program
from tests.program.loading import weights_factories
from tests.program.loading.weights_factories import Tied, net

HERE = weights_factories.__name__
X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


class Runs:
    """A pickle of it makes a folder when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process per file takes seconds; what it does is the same."""
    monkeypatch.setattr(weights_file, "run_isolated", lambda *_, **__: None)


def put(path: Path, factory: str = "build") -> Program:
    return load(path, trust="weights", factory=f"{HERE}:{factory}")


def assert_computes(program: Program, module: nn.Module, max_error: float = 0.0) -> None:
    found = program.run(X)
    assert isinstance(found, Tensor)
    with torch.no_grad():
        torch.testing.assert_close(found, module(X), rtol=0, atol=max_error)


def test_a_state_dict_is_tried_in_a_process_of_its_own_and_replaces_the_factorys_weights(tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / "model.pt")
    before = (tmp_path / "model.pt").read_bytes()
    assert_computes(put(tmp_path / "model.pt"), net())
    assert (tmp_path / "model.pt").read_bytes() == before


@pytest.mark.usefixtures("in_this_process")
class TestForms:
    @pytest.mark.parametrize(
        "wrapped",
        [
            lambda state: {"epoch": 3, "state_dict": state},
            lambda state: {"weights": state, "optimizer": {"step": 3, "lr": 0.1}},
            lambda state: {"model": state, "ema": {key: tensor + 1 for key, tensor in state.items()}},
            lambda state: {f"module.{key}": tensor for key, tensor in state.items()},
            lambda state: {f"_orig_mod.{key}": tensor for key, tensor in state.items()},
            lambda state: {"state_dict": {f"model.{key}": tensor for key, tensor in state.items()}},
            lambda state: {key: tensor for key, tensor in state.items() if "num_batches" not in key},
        ],
        ids=["checkpoint", "with-optimizer", "beside-ema", "data-parallel", "compiled", "lightning", "before-torch-1"],
    )
    @pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
    def test_what_people_save_is_read(self, tmp_path: Path, wrapped: Callable[[Any], Any], is_zip: bool) -> None:
        saved = wrapped(dict(net().state_dict()))
        torch.save(saved, tmp_path / "model.pt", _use_new_zipfile_serialization=is_zip)
        assert_computes(put(tmp_path / "model.pt"), net())

    def test_safetensors_need_no_trust(self, tmp_path: Path) -> None:
        safetensors.torch.save_file(net().state_dict(), tmp_path / "model.pt")
        assert_computes(load(tmp_path / "model.pt", factory=f"{HERE}:build"), net())

    @pytest.mark.parametrize("key", ["first.weight", "last.weight"])
    def test_tied_weights_may_be_stored_under_either_name(self, tmp_path: Path, key: str) -> None:
        module = Tied().eval()
        safetensors.torch.save_file({key: module.state_dict()[key].clone()}, tmp_path / "model.safetensors")
        assert_computes(load(tmp_path / "model.safetensors", factory=f"{HERE}:tied"), module)

    def test_half_precision_is_put_into_single(self, tmp_path: Path) -> None:
        torch.save(net().half().state_dict(), tmp_path / "model.pt")
        program = put(tmp_path / "model.pt")
        assert program.read("first.weight").dtype is torch.float32
        # Every weight of the file is exact in float32.
        assert_computes(program, net().half().float())

    def test_free_dimensions_of_the_factory_stay_and_others_replace_them(self, tmp_path: Path) -> None:
        safetensors.torch.save_file(net().state_dict(), tmp_path / "model.safetensors")
        assert put(tmp_path / "model.safetensors", "dynamic").dims[0].maximum == 9
        program = load(
            tmp_path / "model.safetensors",
            factory=f"{HERE}:alone",
            shapes={"x": "4x3"},
            dynamic={"x": {0: "rows"}},
            dims={"rows": (2, 8)},
        )
        assert [(d.name, d.minimum, d.maximum, d.traced) for d in program.dims] == [("rows", 2, 8, 4)]
        assert_computes(program, net())


@pytest.mark.usefixtures("in_this_process")
class TestRefusals:
    def test_two_models_in_one_checkpoint(self, tmp_path: Path) -> None:
        torch.save({"generator": net().state_dict(), "judge": net().state_dict()}, tmp_path / "model.pt")
        with pytest.raises(UserError, match="holds several dictionaries of tensors") as caught:
            put(tmp_path / "model.pt")
        assert "'generator', 'judge'" in caught.value.why
        assert repr(str(tmp_path / "model.pt")) in caught.value.hint

    @pytest.mark.parametrize(
        ("factory", "lines"),
        [
            (
                "other",
                (
                    "missing (4): 0.weight, 0.bias, 1.weight, 1.bias",
                    "unexpected (9): first.weight, first.bias, norm.weight,",
                    " ...",
                ),
            ),
            ("wider", ("of another shape (2): last.weight: [2, 4] in the file, [7, 4] in the model",)),
        ],
    )
    def test_keys_that_do_not_fit_are_listed(self, tmp_path: Path, factory: str, lines: tuple[str, ...]) -> None:
        torch.save(net().state_dict(), tmp_path / "model.pt")
        with pytest.raises(UserError, match="the weights of model.pt do not fit the model of") as caught:
            put(tmp_path / "model.pt", factory)
        for line in lines:
            assert line in caught.value.why
        assert max(map(len, caught.value.why.splitlines())) <= 120

    def test_a_missing_weight_is_not_left_as_the_factory_made_it(self, tmp_path: Path) -> None:
        state = {key: tensor for key, tensor in net().state_dict().items() if key != "last.bias"}
        torch.save(state, tmp_path / "model.pt")
        with pytest.raises(UserError) as caught:
            put(tmp_path / "model.pt")
        assert caught.value.why == "missing (1): last.bias"

    def test_a_factory_of_a_captured_program(self, tmp_path: Path) -> None:
        torch.save(net().state_dict(), tmp_path / "model.pt")
        with pytest.raises(UserError, match=r"returns a captured Program: \['weights of a file'\]") as caught:
            put(tmp_path / "model.pt", "program")
        assert "(model.eval(), (example_input,))" in caught.value.hint

    @pytest.mark.parametrize("state", [{0: torch.ones(1)}, {None: torch.ones(1)}, {("first",): torch.ones(1), "b": 1}])
    def test_keys_that_are_no_names(self, tmp_path: Path, state: Any) -> None:
        torch.save(state, tmp_path / "model.pt")
        with pytest.raises((UserError, MalformedModel)):
            put(tmp_path / "model.pt")

    def test_a_key_of_any_length_fits_a_screen(self, tmp_path: Path) -> None:
        torch.save({"a" * 1_000_000: net().state_dict(), "b": net().state_dict()}, tmp_path / "model.pt")
        with pytest.raises(UserError, match="several dictionaries") as caught:
            put(tmp_path / "model.pt")
        assert len(str(caught.value)) < 2_000

    @pytest.mark.parametrize("made", [Tensor.to_sparse, lambda tensor: tensor.to("meta")], ids=["sparse", "meta"])
    def test_tensors_without_plain_memory(self, tmp_path: Path, made: Callable[[Tensor], Tensor]) -> None:
        state = net().state_dict()
        torch.save({**state, "last.weight": made(state["last.weight"])}, tmp_path / "model.pt")
        with pytest.raises(UserError, match="without plain memory") as caught:
            put(tmp_path / "model.pt")
        assert "last.weight" in caught.value.why

    def test_what_only_the_safetensors_library_refuses(self, tmp_path: Path) -> None:
        header = b'{"w": {"dtype": "F6_E2M3", "shape": [8], "data_offsets": [0, 6]}}'
        (tmp_path / "model.pt").write_bytes(len(header).to_bytes(8, "little") + header + bytes(6))
        with pytest.raises(MalformedModel, match="cannot be read") as caught:
            put(tmp_path / "model.pt")
        assert "F6_E2M3" in caught.value.why and caught.value.hint

    def test_a_path_that_is_no_utf_8(self, tmp_path: Path) -> None:
        path = tmp_path / os.fsdecode(b"caf\xe9.safetensors")
        path.write_bytes(safetensors.torch.save(net().state_dict()))
        with pytest.raises(MalformedModel) as caught:
            put(path)
        assert caught.value.message.isprintable()

    def test_a_model_without_memory(self, tmp_path: Path) -> None:
        safetensors.torch.save_file(net().state_dict(), tmp_path / "model.pt")
        with pytest.raises(UserError, match="on the meta device") as caught:
            put(tmp_path / "model.pt", "on_meta")
        assert "on the CPU" in caught.value.hint

    @pytest.mark.parametrize("wrapped", [lambda state: state, lambda state: {"model": state}])
    def test_values_among_the_tensors_lead_to_the_tensors_alone(self, tmp_path: Path, wrapped: Any) -> None:
        torch.save(wrapped({**net().state_dict(), "epoch": 3}), tmp_path / "model.pt")
        with pytest.raises(UserError, match="holds no dictionary of tensors") as caught:
            put(tmp_path / "model.pt")
        assert "torch.is_tensor(t)" in caught.value.hint

    def test_no_trust_and_no_factory_are_said_at_once(self, tmp_path: Path) -> None:
        torch.save(net().state_dict(), tmp_path / "model.pt")
        with pytest.raises(Untrusted, match="refused model.pt: it is a state dict of 9 tensors") as caught:
            load(tmp_path / "model.pt")
        assert caught.value.retry == (("--trust", "weights"), ("--factory", "my_model:factory"))
        assert "function factory()" in caught.value.hint

    def test_a_factory_alone_does_not_ask_for_another(self, tmp_path: Path) -> None:
        torch.save(net().state_dict(), tmp_path / "model.pt")
        with pytest.raises(Untrusted) as caught:
            load(tmp_path / "model.pt", factory=f"{HERE}:build")
        assert caught.value.retry == (("--trust", "weights"),)

    def test_safetensors_without_a_factory(self, tmp_path: Path) -> None:
        safetensors.torch.save_file(net().state_dict(), tmp_path / "model.pt")
        with pytest.raises(UserError, match="a safetensors file of 9 tensors") as caught:
            load(tmp_path / "model.pt")
        assert (caught.value.exit_code, caught.value.retry) == (2, (("--factory", "my_model:factory"),))


class TestHostile:
    @pytest.mark.parametrize("trust", ["data", "weights", "code"])
    @pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
    def test_code_among_weights_never_runs(
        self, tmp_path: Path, trust: Literal["data", "weights", "code"], is_zip: bool, in_this_process: None
    ) -> None:
        marker, path = tmp_path / "marker", tmp_path / "model.pt"
        state = {**net().state_dict(), "more": Runs(marker)}
        torch.save(state, path, _use_new_zipfile_serialization=is_zip)
        with pytest.raises(Untrusted):
            load(path, trust=trust, factory=f"{HERE}:build")
        assert not marker.exists()
        # The same file runs its code where that is allowed: the test above can fail.
        torch.load(path, weights_only=False)
        assert marker.exists()

    def test_what_it_holds_is_named_and_the_unsafe_way_is_not_advised(self, tmp_path: Path) -> None:
        torch.save({"model": net().state_dict(), "args": argparse.Namespace(lr=0.1)}, tmp_path / "model.pt")
        with pytest.raises(Untrusted, match="beside weights it holds argparse.Namespace") as caught:
            put(tmp_path / "model.pt")
        message = str(caught.value)
        assert "add_safe_globals" not in message and "\x1b" not in message
        assert ".safetensors" in caught.value.hint and "if you trust its author" in caught.value.hint
        assert caught.value.retry == ()

    @pytest.mark.parametrize("position", [0.2, 0.5, 0.8])
    def test_a_damaged_pickle_is_malformed(self, tmp_path: Path, position: float, in_this_process: None) -> None:
        path = tmp_path / "model.pt"
        torch.save(net().state_dict(), path, _use_new_zipfile_serialization=False)
        content = bytearray(path.read_bytes())
        start = content.index(b"first.weight")
        end = content.index(pickle.STOP, start)
        at = start + int((end - start) * position)
        content[at : at + 8] = b"\xff" * 8
        path.write_bytes(bytes(content))
        with pytest.raises(FlowoptError) as caught:
            put(path)
        assert isinstance(caught.value, MalformedModel | Untrusted)
        assert caught.value.hint
