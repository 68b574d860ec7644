"""The README's support table: one test per row, and no row without one.

Each row is tested on modules captured here and, marked slow, on archives of the same modules.
"""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, library, nn

import flowopt
from flowopt.errors import CaptureError, Untrusted, UserError
from flowopt.report.passes import PassRecord
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


@dataclasses.dataclass(frozen=True)
class Bench:
    """Where a row's files go, and by which way its modules become programs."""

    folder: Path
    by_archive: bool

    def program(self, module: nn.Module, *args: Tensor) -> flowopt.Program:
        """With a free batch, of 1 to 16 (the second dimension of an unused input is fixed)."""
        module.eval()
        if not self.by_archive:
            return flowopt.capture(module, args, dynamic={"x": {0: "batch"}}, dims={"batch": (1, 16)})
        shapes = ({0: torch.export.Dim("batch", min=1, max=16)}, *[None] * (len(args) - 1))
        path = self.folder / "model.pt2"
        torch.export.save(torch.export.export(module, args, dynamic_shapes=shapes), path)
        return flowopt.load(path)

    def optimized(
        self, module: nn.Module, *args: Tensor, target: str = "cpu"
    ) -> tuple[flowopt.Program, flowopt.OptimizeResult]:
        """With random weights."""
        randomise(module, seed=3)
        program = self.program(module, *(args or (torch.randn(2, 3, 8),)))
        return program, flowopt.optimize(program, target=target, folder=self.folder / target)

    def works(self, module: nn.Module, *args: Tensor, folds: int = 3, target: str = "cpu") -> flowopt.OptimizeResult:
        """Verified, with this many folds."""
        program, result = self.optimized(module, *args, target=target)
        assert result.report.outcome == "verified", (result.report.outcome, result.verdict.reason)
        assert sum(len(p.applied) for p in result.report.passes if p.name.startswith("fold-")) == folds
        assert_equivalent(program, result.artifact)
        return result


def dynamic_sizes(bench: Bench) -> None:
    result = bench.works(Net())
    assert result.artifact is not None
    for batch in (1, 5, 16):
        output = result.artifact.run(torch.randn(batch, 3, 8))
        assert isinstance(output, Tensor)
        assert output.shape == (batch, 8, 4)


@dataclasses.dataclass
class Answer:
    logits: Tensor
    hidden: list[Tensor]


def nested_outputs(bench: Bench) -> None:
    torch.export.register_dataclass(Answer, serialized_type_name="tests.Answer")

    class Nested(Net):
        def forward(self, x: Tensor) -> Any:
            features = self.features(x)
            logits = self.head(features)
            return {"answer": Answer(logits, [logits.sum(-1), logits.mean(-1)]), "pair": (logits + 1, logits - 1)}

    result = bench.works(Nested())
    names = [o.name for o in result.program.outputs]
    assert names == ["answer.logits", "answer.hidden.0", "answer.hidden.1", "pair.0", "pair.1"]


def tied_weights(bench: Bench) -> None:
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

    result = bench.works(Tied(), torch.randint(0, 11, (2, 5)), folds=2)
    (fold,) = (p for p in result.report.passes if p.name == "fold-norm-affine")
    assert fold.added_bytes >= 11 * 6 * 4 - 2 * 6 * 4  # a second matrix, without gain and shift


def mutated_buffer(bench: Bench) -> None:
    class Counting(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("steps", torch.zeros(()))

        def forward(self, x: Tensor) -> Any:
            assert isinstance(self.steps, Tensor)
            self.steps.add_(1)
            return self.head(self.features(x)) * self.steps

    result = bench.works(Counting())
    assert [i.name for i in result.program.inputs] == ["state_steps", "x"]
    assert result.artifact is not None
    first = result.artifact.run(x := torch.randn(2, 3, 8))
    assert isinstance(first, dict)
    second = result.artifact.run(x, state_steps=first["state_steps.next"])
    assert isinstance(second, dict)
    assert float(second["state_steps.next"]) == float(first["state_steps.next"]) + 1


def mutated_input(bench: Bench) -> None:
    class InPlace(Net):
        def forward(self, x: Tensor) -> Any:
            x.mul_(2)
            return self.head(self.features(x))

    result = bench.works(InPlace())
    assert [o.name for o in result.program.outputs] == ["output", "x.next"]


FOLDED = {"fold-batch-norm": "kept", "fold-norm-affine": "kept", "fold-norm-mean": "kept"}


def outcomes(records: Iterable[PassRecord]) -> dict[str, str]:
    """Of the passes that changed something or were undone."""
    return {r.name: r.outcome for r in records if r.outcome != "unchanged"}


def half_precision(bench: Bench) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        module = randomise_in(Net(), dtype)
        program = bench.program(module, torch.randn(2, 3, 8, dtype=dtype))
        run = flowopt.Pipeline("exact").run(program)
        assert outcomes(run.records) == FOLDED, [r.reason for r in run.records]
        assert all(t.dtype is dtype for t in run.program.tensors.values())


def randomise_in(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    randomise(module, seed=3)
    return module.to(dtype).eval()


def data_dependent_sizes(bench: Bench) -> None:
    class Selecting(Net):
        def forward(self, x: Tensor) -> Any:
            picked = self.batch_norm(self.conv(x)).transpose(1, 2)[x[:, 0] > 0]
            return self.head(self.norm(picked))

    module = Selecting()
    randomise(module, seed=3)
    program = bench.program(module, torch.randn(2, 3, 8))
    run = flowopt.Pipeline("exact").run(program)
    # Rows that are picked by what is in them are no stream that a mean could be taken from.
    wanted = {name: outcome for name, outcome in FOLDED.items() if name != "fold-norm-mean"}
    assert outcomes(run.records) == wanted, [r.reason for r in run.records]
    assert all(record.verdict for record in run.records if record.outcome != "unchanged")


def dropout(bench: Bench) -> None:
    class Dropping(Net):
        def forward(self, x: Tensor) -> Any:
            return self.head(nn.functional.dropout(self.features(x), 0.5, self.training))

    result = bench.works(Dropping())
    assert not any("dropout" in name for name in result.report.census_before)


def train_mode(bench: Bench) -> None:
    module = Net()
    with pytest.raises(CaptureError, match="train mode"):
        flowopt.capture(module.train(), (torch.randn(2, 3, 8),))
    flowopt.capture(module, (torch.randn(2, 3, 8),), eval_mode=True)
    assert module.training


def random_operators(bench: Bench) -> None:
    class Noisy(Net):
        def forward(self, x: Tensor) -> Any:
            features = self.features(x)
            return self.head(features) + torch.rand_like(features[..., :1])

    _, result = bench.optimized(Noisy())
    assert result.report.outcome == "inconclusive"
    assert result.artifact is None
    assert "random" in result.verdict.reason


def constant_outputs(bench: Bench) -> None:
    class Chatty(Net):
        def forward(self, x: Tensor) -> Any:
            y = self.head(self.features(x))
            return {"first": y, "second": y, "nothing": None, "number": 3, "word": "logits"}

    result = bench.works(Chatty())
    assert [o.name for o in result.program.outputs] == ["first", "second"]


def aliased_outputs(bench: Bench) -> None:
    class Aliasing(Net):
        def forward(self, x: Tensor) -> Any:
            y = self.head(self.features(x))
            return x, y, y.transpose(1, 2), self.head.weight

    assert len(bench.works(Aliasing()).program.outputs) == 4


def unused_inputs(bench: Bench) -> None:
    class Ignoring(Net):
        def forward(self, x: Tensor, ignored: Tensor) -> Any:  # type: ignore[override]  # one input more
            return self.head(self.features(x))

    result = bench.works(Ignoring(), torch.randn(2, 3, 8), torch.randn(2, 5))
    assert result.artifact is not None
    assert [i.name for i in result.artifact.inputs] == ["x", "ignored"]


def other_inputs(bench: Bench) -> None:
    class Casting(Net):
        def forward(self, x: Tensor) -> Any:
            return self.head(self.features(x.float()))

    for index, dtype in enumerate((torch.int64, torch.bool, torch.float16, torch.bfloat16)):
        each = dataclasses.replace(bench, folder=bench.folder / str(index))
        each.folder.mkdir()
        result = each.works(Casting(), torch.ones(2, 3, 8).to(dtype))
        assert result.program.inputs[0].dtype is dtype


def non_contiguous_parameters(bench: Bench) -> None:
    class Strided(Net):
        def __init__(self) -> None:
            super().__init__()
            self.head.weight = nn.Parameter(torch.randn(6, 4).t())
            self.conv.weight = nn.Parameter(torch.randn(6, 3, 6)[:, :, ::2])

    assert not Strided().conv.weight.is_contiguous()
    bench.works(Strided())


def sparse_tensors(bench: Bench) -> None:
    class Sparse(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mixing", torch.eye(4).to_sparse())

        def forward(self, x: Tensor) -> Any:
            assert isinstance(self.mixing, Tensor)
            return torch.sparse.mm(self.mixing, self.head(self.features(x))[0].t())

    with pytest.raises(CaptureError, match="sparse_coo"):
        bench.program(Sparse(), torch.randn(2, 3, 8))


def numbers_as_outputs(bench: Bench) -> None:
    class Counting(Net):
        def forward(self, x: Tensor) -> Any:
            return self.head(self.features(x)), x.shape[0]

    with pytest.raises(CaptureError, match="not a tensor"):
        bench.program(Counting(), torch.randn(2, 3, 8))


@library.custom_op("flowopt_tests::triple", mutates_args=())
def triple(x: Tensor) -> Tensor:
    return 3 * x


triple.register_fake(torch.empty_like)


def custom_operators(bench: Bench) -> None:
    class Custom(Net):
        def forward(self, x: Tensor) -> Any:
            return triple(self.head(self.features(x)))

    if bench.by_archive:
        with pytest.raises(Untrusted, match="flowopt_tests::triple"):
            bench.program(Custom(), torch.randn(2, 3, 8))
        return
    bench.works(Custom(), target="torch")
    with pytest.raises(UserError, match="triple"):
        bench.optimized(Custom())


def complex_tensors(bench: Bench) -> None:
    class Spectrum(Net):
        def forward(self, x: Tensor) -> Any:
            return torch.fft.rfft(self.head(self.features(x)))

    bench.works(Spectrum(), target="torch")
    with pytest.raises(UserError, match="complex"):
        bench.optimized(Spectrum())


def control_flow(bench: Bench) -> None:
    class Branching(Net):
        def forward(self, x: Tensor) -> Any:
            return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (self.head(self.features(x)),))

    with pytest.raises(CaptureError, match="control flow") as refused:
        bench.optimized(Branching())
    assert "test_support_table.py" in refused.value.why


def quantized_modules(bench: Bench) -> None:
    quantized = torch.ao.quantization.quantize_dynamic(Net().eval(), {nn.Linear})
    with pytest.raises(CaptureError):
        flowopt.capture(quantized, (torch.randn(2, 3, 8),))


ROWS: dict[str, Callable[[Bench], None]] = {
    "dynamic batch and sequence": dynamic_sizes,
    "nested, dictionary and dataclass outputs": nested_outputs,
    "tied weights, modules called twice": tied_weights,
    "buffers that the model changes, caches": mutated_buffer,
    "inputs that the model changes": mutated_input,
    "None, constants and one tensor twice as outputs": constant_outputs,
    "inputs, views and parameters as outputs": aliased_outputs,
    "sizes and numbers as outputs": numbers_as_outputs,
    "unused inputs": unused_inputs,
    "integer, boolean, float16, bfloat16 inputs": other_inputs,
    "non-contiguous parameters": non_contiguous_parameters,
    "float16, bfloat16": half_precision,
    "data-dependent sizes": data_dependent_sizes,
    "dropout in eval mode": dropout,
    "train mode": train_mode,
    "random operators": random_operators,
    "custom operators": custom_operators,
    "complex tensors, FFT": complex_tensors,
    "control flow (`torch.cond`, `while_loop`, `scan`)": control_flow,
    "quantized modules": quantized_modules,
    "sparse tensors": sparse_tensors,
}


# What needs no archive: these end before there could be one (torch.export.save writes no sparse tensors).
_CAPTURED_ONLY = ("train mode", "quantized modules", "sparse tensors")


@pytest.mark.parametrize("feature", ROWS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_row_holds(feature: str, tmp_path: Path) -> None:
    ROWS[feature](Bench(tmp_path, by_archive=False))


@pytest.mark.slow
@pytest.mark.parametrize("feature", [name for name in ROWS if name not in _CAPTURED_ONLY])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_the_row_holds_for_an_archive(feature: str, tmp_path: Path) -> None:
    ROWS[feature](Bench(tmp_path, by_archive=True))


def test_every_row_of_the_readme_has_a_test() -> None:
    section = README.read_text().split("## What happens to your model's features")[1].split("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| ")]
    assert rows[1:] == list(ROWS)
