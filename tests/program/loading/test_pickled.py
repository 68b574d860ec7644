"""Modules that were pickled whole: read on explicit trust only, found by their class, captured with given shapes."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from flowopt.errors import CaptureError, FlowoptError, MalformedModel, MissingDependency, Untrusted, UserError
from flowopt.program.loading.load import load
from tests.program.loading.saved import code_of, forget
from tests.zoo.randomise import randomise

X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


class RunsCode(nn.Module):
    """A module whose pickle makes a folder when it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.hook = Runs("marker")


class Runs:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.marker,)


@pytest.fixture(autouse=True)
def in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    forget("own_net")
    yield
    forget("own_net")


def saved(wrapped: Any = lambda net: net, *, is_zip: bool = True) -> nn.Module:
    """A module of a class in the current folder, in eval mode, in a file."""
    with code_of(Path.cwd(), "own_net") as own_net:
        net: nn.Module = own_net.Net()
        randomise(net, seed=1)
        torch.save(wrapped(net.eval()), "model.pt", _use_new_zipfile_serialization=is_zip)
    return net


def captured(**options: Any) -> object:
    return load("model.pt", trust="code", shapes={"x": "5x3"}, **options).run(X)


def expected(net: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = net(X)
    return result


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda net: net,
        lambda net: {"epoch": 3, "model": net},
        lambda net: {"epoch": 3, "network": net, "optimizer": {"lr": 0.1}},
        lambda net: {"model": net, "ema": nn.Linear(3, 3)},
        lambda net: nn.DataParallel(net),
    ],
    ids=["alone", "checkpoint", "the-only-module", "beside-ema", "data-parallel"],
)
def test_a_class_is_found_in_the_current_folder(wrapped: Any) -> None:
    net = saved(wrapped)
    before = list(sys.path)
    assert torch.equal(captured(), expected(net))  # type: ignore[arg-type]  # one output comes bare
    assert sys.path == before


def test_the_format_before_torch_1_6_is_read() -> None:
    net = saved(is_zip=False)
    assert torch.equal(captured(), expected(net))  # type: ignore[arg-type]  # one output comes bare


@pytest.mark.parametrize("trust", ["data", "weights"])
def test_without_trust_in_code_nothing_is_run(trust: Literal["data", "weights"]) -> None:
    torch.save(RunsCode(), "model.pt")
    with pytest.raises(Untrusted, match="refused model.pt: it is a pickled module of class .*RunsCode") as caught:
        load("model.pt", trust=trust)
    assert caught.value.retry == (("--trust", "code"),)
    assert not Path("marker").exists()


def test_with_trust_in_code_the_pickle_runs() -> None:
    # The control of the test above: the same file does run.
    torch.save(RunsCode(), "model.pt")
    with pytest.raises(FlowoptError):
        load("model.pt", trust="code")
    assert Path("marker").exists()


def test_a_module_that_is_not_here_is_named() -> None:
    saved()
    Path("own_net.py").unlink()
    with pytest.raises(MissingDependency, match=r"model.pt needs own_net, which cannot be imported here") as caught:
        captured()
    assert caught.value.exit_code == 69
    assert "run from the folder that holds the model's code" in caught.value.hint


def test_a_class_that_is_no_longer_in_its_module_is_named_without_paths() -> None:
    saved()
    Path("own_net.py").write_text("")
    with pytest.raises(MissingDependency, match=r"model.pt needs own_net.Net, which") as caught:
        captured()
    assert str(Path.cwd()) not in str(caught.value)


def test_a_class_of_a_script_leads_to_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    class Net(nn.Linear):
        pass

    Net.__module__, Net.__qualname__ = "__main__", "Net"
    with monkeypatch.context() as patched:
        patched.setattr(sys.modules["__main__"], "Net", Net, raising=False)
        torch.save(Net(3, 3), "model.pt")
    with pytest.raises(MissingDependency, match="needs __main__.Net") as caught:
        captured()
    assert 'torch.save(model.state_dict(), "weights.pt")' in caught.value.hint
    assert "\nflowopt optimize weights.pt --trust weights --factory my_model:factory" in caught.value.hint


def test_train_mode_is_refused_with_the_option_to_add() -> None:
    saved(lambda net: net.train())
    with pytest.raises(CaptureError, match=r"model.pt is in train mode \(train-mode\)") as caught:
        captured()
    assert caught.value.retry == (("--eval", ""),)
    assert captured(eval_mode=True) is not None


def test_without_inputs_a_guess_is_made() -> None:
    saved()
    with pytest.raises(UserError, match="model.pt says nothing about its inputs") as caught:
        load("model.pt", trust="code")
    assert caught.value.retry == (("--shape", "x=1x3"),)
    assert isinstance(load("model.pt", trust="code", shapes={"x": "1x3"}).run(X[:1]), Tensor)


def test_a_factory_does_not_apply() -> None:
    saved()
    with pytest.raises(UserError, match="--factory is for files that hold weights alone"):
        captured(factory="own_net:Net")


@pytest.mark.parametrize(
    ("wrapped", "why"),
    [
        (lambda net: {"left": net, "right": nn.Linear(3, 3)}, "several of its entries are modules: 'left', 'right'"),
        (lambda net: {"models": {"student": net}}, "its module lies deeper"),
    ],
)
def test_a_checkpoint_without_one_model_says_how_to_save_it(wrapped: Any, why: str) -> None:
    saved(wrapped)
    with pytest.raises(UserError, match="model.pt holds dict, not a module") as caught:
        captured()
    assert caught.value.why == why
    assert 'weights_only=False)[key], "model.pt")' in caught.value.hint


def test_whatever_reading_raises_is_one_line() -> None:
    with code_of(Path.cwd(), "own_net", "from torch import nn\nclass Net(nn.Linear):\n    pass\n") as own_net:
        torch.save(own_net.Net(3, 3), "model.pt")
    Path("own_net.py").write_text(
        "from torch import nn\nclass Net(nn.Linear):\n    def __setstate__(self, state):\n"
        "        raise ZeroDivisionError('of\\x1b[2J another version\\nand more')\n"
    )
    forget("own_net")
    with pytest.raises(MalformedModel, match="model.pt cannot be read: ZeroDivisionError") as caught:
        captured()
    assert caught.value.why == "of\\x1b[2J another version"
