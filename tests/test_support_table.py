"""The README's support table: one test per row, and no row without one."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flowopt
from flowopt.errors import CaptureError, UserError
from flowopt.testing import assert_equivalent
from tests.zoo.randomise import randomise

README = Path(__file__).resolve().parents[1] / "README.md"


class Net(nn.Module):
    """Conv, batch norm, layer norm, linear: something to fold around whatever a row is about."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 6, 3, padding=1)
        self.batch_norm = nn.BatchNorm1d(6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        features: Tensor = self.norm(self.batch_norm(self.conv(x)).transpose(1, 2))
        return features


def optimized(
    module: nn.Module, folder: Path, *, target: str = "cpu", x: Tensor | None = None
) -> tuple[flowopt.Program, flowopt.OptimizeResult]:
    """Captured with a free batch, optimized, both folds applied where the module holds them."""
    randomise(module, seed=3)
    x = torch.randn(2, 3, 8) if x is None else x
    program = flowopt.capture(module.eval(), (x,), dynamic={"x": {0: "batch"}}, dims={"batch": (1, 16)})
    return program, flowopt.optimize(program, target=target, folder=folder / "model")


def assert_works(module: nn.Module, folder: Path, *, folds: int = 2, **options: Any) -> flowopt.OptimizeResult:
    program, result = optimized(module, folder, **options)
    assert result.report.outcome == "verified", (result.report.outcome, result.verdict.reason)
    assert sum(len(p.applied) for p in result.report.passes if p.name.startswith("fold-")) == folds
    assert_equivalent(program, result.artifact)
    return result


def dynamic_sizes(folder: Path) -> None:
    result = assert_works(Net(), folder)
    assert result.artifact is not None
    for batch in (1, 5, 16):
        output = result.artifact.run(torch.randn(batch, 3, 8))
        assert isinstance(output, Tensor)
        assert output.shape == (batch, 8, 4)


@dataclasses.dataclass
class Answer:
    logits: Tensor
    hidden: list[Tensor]


def nested_outputs(folder: Path) -> None:
    torch.export.register_dataclass(Answer, serialized_type_name="tests.Answer")

    class Nested(Net):
        def forward(self, x: Tensor) -> Any:
            features = self.features(x)
            logits = self.head(features)
            return {"answer": Answer(logits, [logits.sum(-1), logits.mean(-1)]), "pair": (logits + 1, logits - 1)}

    result = assert_works(Nested(), folder)
    names = [o.name for o in result.program.outputs]
    assert names == ["answer.logits", "answer.hidden.0", "answer.hidden.1", "pair.0", "pair.1"]


def tied_weights(folder: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(11, 6)
            self.norm = nn.LayerNorm(6)
            self.head = nn.Linear(6, 11, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.norm(self.embedding(x)))
            return logits

    result = assert_works(Tied(), folder, folds=1, x=torch.randint(0, 11, (2, 5)))
    (fold,) = (p for p in result.report.passes if p.applied)
    assert fold.added_bytes >= 11 * 6 * 4 - 2 * 6 * 4  # a second matrix, without gain and shift


def mutated_buffer(folder: Path) -> None:
    class Counting(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("steps", torch.zeros(()))

        def forward(self, x: Tensor) -> Any:
            assert isinstance(self.steps, Tensor)
            self.steps.add_(1)
            return self.head(self.features(x)) * self.steps

    result = assert_works(Counting(), folder)
    assert [i.name for i in result.program.inputs] == ["state_steps", "x"]
    assert result.artifact is not None
    first = result.artifact.run(x := torch.randn(2, 3, 8))
    assert isinstance(first, dict)
    second = result.artifact.run(x, state_steps=first["state_steps.next"])
    assert isinstance(second, dict)
    assert float(second["state_steps.next"]) == float(first["state_steps.next"]) + 1


def mutated_input(folder: Path) -> None:
    class InPlace(Net):
        def forward(self, x: Tensor) -> Any:
            x.mul_(2)
            return self.head(self.features(x))

    result = assert_works(InPlace(), folder)
    assert [o.name for o in result.program.outputs] == ["output", "x.next"]


def half_precision(folder: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        module = randomise_in(Net(), dtype)
        program = flowopt.capture(module, (torch.randn(2, 3, 8, dtype=dtype),), dynamic={"x": {0: "batch"}})
        run = flowopt.Pipeline("exact").run(program)
        assert [r.outcome for r in run.records] == ["unchanged", "kept", "kept"], [r.reason for r in run.records]
        assert all(t.dtype is dtype for t in run.program.tensors.values())


def randomise_in(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    randomise(module, seed=3)
    return module.to(dtype).eval()


def data_dependent_sizes(folder: Path) -> None:
    class Selecting(Net):
        def forward(self, x: Tensor) -> Any:
            picked = self.batch_norm(self.conv(x)).transpose(1, 2)[x[:, 0] > 0]
            return self.head(self.norm(picked))

    module = Selecting()
    randomise(module, seed=3)
    program = flowopt.capture(module.eval(), (torch.randn(2, 3, 8),), dynamic={"x": {0: "batch"}})
    run = flowopt.Pipeline("exact").run(program)
    assert [r.outcome for r in run.records] == ["unchanged", "kept", "kept"], [r.reason for r in run.records]
    assert run.records[-1].verdict


def dropout(folder: Path) -> None:
    class Dropping(Net):
        def forward(self, x: Tensor) -> Any:
            return self.head(nn.functional.dropout(self.features(x), 0.5, self.training))

    result = assert_works(Dropping(), folder)
    assert not any("dropout" in name for name in result.report.census_before)


def train_mode(folder: Path) -> None:
    module = Net()
    with pytest.raises(CaptureError, match="train mode"):
        flowopt.capture(module.train(), (torch.randn(2, 3, 8),))
    flowopt.capture(module, (torch.randn(2, 3, 8),), eval_mode=True)
    assert module.training


def random_operators(folder: Path) -> None:
    class Noisy(Net):
        def forward(self, x: Tensor) -> Any:
            features = self.features(x)
            return self.head(features) + torch.rand_like(features[..., :1])

    _, result = optimized(Noisy(), folder)
    assert result.report.outcome == "inconclusive"
    assert result.artifact is None
    assert "random" in result.verdict.reason


def custom_operators(folder: Path) -> None:
    @torch.library.custom_op("flowopt_tests::triple", mutates_args=())
    def triple(x: Tensor) -> Tensor:
        return 3 * x

    triple.register_fake(torch.empty_like)

    class Custom(Net):
        def forward(self, x: Tensor) -> Any:
            return triple(self.head(self.features(x)))

    assert_works(Custom(), folder, target="torch")
    with pytest.raises(UserError, match="triple"):
        optimized(Custom(), folder / "onnx")


def complex_tensors(folder: Path) -> None:
    class Spectrum(Net):
        def forward(self, x: Tensor) -> Any:
            return torch.fft.rfft(self.head(self.features(x)))

    assert_works(Spectrum(), folder, target="torch")
    with pytest.raises(UserError, match="complex"):
        optimized(Spectrum(), folder / "onnx")


def control_flow(folder: Path) -> None:
    class Branching(Net):
        def forward(self, x: Tensor) -> Any:
            return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (self.head(self.features(x)),))

    with pytest.raises(CaptureError, match="control flow") as refused:
        optimized(Branching(), folder)
    assert "test_support_table.py" in refused.value.why


def quantized_modules(folder: Path) -> None:
    quantized = torch.ao.quantization.quantize_dynamic(Net().eval(), {nn.Linear})
    with pytest.raises(CaptureError):
        flowopt.capture(quantized, (torch.randn(2, 3, 8),))


ROWS: dict[str, Callable[[Path], None]] = {
    "dynamic batch and sequence": dynamic_sizes,
    "nested, dictionary and dataclass outputs": nested_outputs,
    "tied weights, modules called twice": tied_weights,
    "buffers that the model changes, caches": mutated_buffer,
    "inputs that the model changes": mutated_input,
    "float16, bfloat16": half_precision,
    "data-dependent sizes": data_dependent_sizes,
    "dropout in eval mode": dropout,
    "train mode": train_mode,
    "random operators": random_operators,
    "custom operators": custom_operators,
    "complex tensors, FFT": complex_tensors,
    "control flow (`torch.cond`, `while_loop`, `scan`)": control_flow,
    "quantized modules": quantized_modules,
}


@pytest.mark.parametrize("feature", ROWS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_row_holds(feature: str, tmp_path: Path) -> None:
    ROWS[feature](tmp_path)


def test_every_row_of_the_readme_has_a_test() -> None:
    section = README.read_text().split("## What happens to your model's features")[1].split("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| ")]
    assert rows[1:] == list(ROWS)
