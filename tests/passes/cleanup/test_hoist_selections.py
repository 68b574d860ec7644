import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flowopt.analysis.flops import flops
from flowopt.ir.metadata import static_size
from flowopt.ir.text import operator_census
from flowopt.passes.cleanup.eliminate_no_ops import EliminateNoOps
from flowopt.passes.cleanup.hoist_selections import HoistSelections
from flowopt.pipeline.runner import PipelineRun, run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.testing import assert_rewrites
from flowopt.verification.verify_passes import VerifyPasses
from tests.passes.cleanup.selections import (
    BATCH,
    CLASSES,
    HEADS,
    TOKENS,
    WIDTH,
    Take,
    classifier,
    last_token,
    tokens,
    visible,
)
from tests.passes.programs import Written, canonical, decomposed, normal, randomised
from tests.zoo.models import ZOO
from tests.zoo.text_models import random_text_model
from tests.zoo.zoo_model import ZooModel

_aten = torch.ops.aten
_LINEAR = _aten.linear.default
_ATTENTION = _aten.scaled_dot_product_attention.default
X = tokens()
FREE = {"dynamic": {"x": {0: "batch", 1: "sequence"}}, "dims": {"sequence": (1, 99)}}
FREE_BATCH = {"dynamic": {"x": {0: "batch"}}}


def assert_hoists(model: nn.Module | Program, *inputs: Tensor, costly: int, slices: int, **options: Any) -> PipelineRun:
    """One selection moves up, ``costly`` operators compute less, ``slices`` are there then, and FLOPs fall."""
    captured = model if isinstance(model, Program) else capture(model, inputs, **options)
    program = run_passes(captured, [EliminateNoOps()]).program
    # Counts of other operators stay: each is called for fewer rows.
    census = operator_census(program.graph)
    layers = {name: census[name] for name in ("aten.linear", "aten.layer_norm", "aten.scaled_dot_product_attention")}
    run = assert_rewrites(HoistSelections(), program, before=layers, after={**layers, "aten.slice.Tensor": slices})
    (applied,) = run.records[0].applied
    assert f" {costly} of them costly" in applied.summary
    assert work(run.program) < work(program)
    return run


def work(program: Program) -> int:
    found = flops(program, {dim.name: dim.traced for dim in program.dims})
    assert found is not None
    return found


def whole(program: Program, target: Any, axis: int, size: int = TOKENS) -> int:
    """How many calls of an operator still give all tokens."""
    return sum(static_size(node, axis) == size for node in program.graph.find_nodes(op="call_function", target=target))


# A transformer's last block.


def test_the_last_block_computes_the_selected_token_alone() -> None:
    run = assert_hoists(classifier(depth=2), X, costly=7, slices=2)
    # Of the last block, keys and values alone are of all tokens.
    assert whole(run.program, _LINEAR, 1) == 6 + 2
    assert whole(run.program, _ATTENTION, 2) == 1


@pytest.mark.parametrize(
    ("mask", "slices"),
    [
        (visible(BATCH, 1, TOKENS, TOKENS), 3),
        (visible(TOKENS, TOKENS), 3),
        (visible(1, 1, 1, TOKENS), 2),
        (visible(1, TOKENS), 2),
        (normal(BATCH, HEADS, TOKENS, TOKENS), 3),
    ],
    ids=["batch", "rows", "one row", "a row alone", "added"],
)
def test_a_mask_shrinks_where_it_has_a_row_for_each_query(mask: Tensor, slices: int) -> None:
    assert_hoists(classifier(), X, mask, costly=7, slices=slices)


def test_an_expanded_mask_is_expanded_to_fewer_rows() -> None:
    def forward(m: Written, x: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = m.model(x, mask[:, None, None, :].expand(-1, HEADS, TOKENS, -1))
        return logits

    module = Written(forward, model=classifier()).eval()
    run = assert_hoists(module, X, visible(BATCH, TOKENS), costly=7, slices=2)
    assert whole(run.program, _aten.expand.default, 2) == 0


def test_causal_attention_stays_whole_and_what_follows_does_not() -> None:
    run = assert_hoists(classifier(last_token, is_causal=True), X, costly=5, slices=2)
    assert whole(run.program, _ATTENTION, 2) == 1
    assert whole(run.program, _LINEAR, 1) == 3


def test_packed_projections_give_all_tokens_and_what_follows_does_not() -> None:
    run = assert_hoists(classifier(is_packed=True), X, costly=6, slices=2)
    assert whole(run.program, _LINEAR, 1) == 1


def test_the_decomposed_block_computes_the_selected_token_alone() -> None:
    program = decomposed(classifier(depth=2), X)
    assert_hoists(canonical(program), costly=8, slices=2)
    assert_hoists(program, costly=8, slices=2)


def test_a_block_of_torch_with_the_sequence_first_is_hoisted() -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 8, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    module = randomised(Written(lambda m, x: m.head(m.encoder(x)[0]), encoder=encoder, head=nn.Linear(WIDTH, CLASSES)))
    assert_hoists(module, X, costly=5, slices=2, dynamic={"x": {1: "batch"}})


def bert_classifier() -> ZooModel:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=97,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=64,
    )
    return random_text_model("bert-classifier", BertForSequenceClassification(config), seed=2)


@pytest.mark.parametrize(
    ("build", "constants", "costly"),
    [(ZOO["vit"], {}, 7), (bert_classifier, {}, 7), (ZOO["llama"], {"logits_to_keep": 1}, 6)],
    ids=["vit", "bert", "llama"],
)
def test_models_of_transformers_are_hoisted(
    build: Callable[[], ZooModel], constants: dict[str, int], costly: int
) -> None:
    model = build()
    kwargs = model.kwargs | constants
    program = canonical(capture(model.module, kwargs=kwargs, dynamic=model.dynamic, dims=model.dims))
    run = run_passes(program, [HoistSelections()], [VerifyPasses()])
    (record,) = run.records
    assert record.outcome == "kept" and record.verdict is not None and record.verdict.outcome == "equivalent"
    assert f" {costly} of them costly" in record.applied[0].summary
    assert work(run.program) < 0.75 * work(program)


# Which rows.


@pytest.mark.parametrize(
    "take",
    [
        lambda x: x[:, -2],
        lambda x: x[:, :2],
        lambda x: x[:, -2:],
        lambda x: x[:, 1:2],
        lambda x: x.transpose(1, 2)[..., 1],
        lambda x: x.reshape(BATCH, TOKENS, 2, 3)[:, 0].flatten(1),
    ],
    ids=["last but one", "first two", "last two", "second", "transposed", "reshaped"],
)
def test_any_rows_are_selected(take: Take) -> None:
    assert_hoists(classifier(take), X, costly=7, slices=2)


@pytest.mark.parametrize("take", [lambda x: x[:, 0], last_token, lambda x: x[:, -1:]], ids=["first", "last", "slice"])
def test_free_sequences_stay_free(take: Take) -> None:
    program = capture(classifier(take), (X,), **FREE)  # type: ignore[arg-type]
    run = run_passes(program, [HoistSelections()], [VerifyPasses()])
    (record,) = run.records
    assert record.outcome == "kept", record
    assert run.program.shape("output")[0] == "batch"
    for length in (1, 9):
        x = tokens(3, length)
        found = run.program.run_named({"x": x})["output"]
        torch.testing.assert_close(found, classifier(take)(x), rtol=1e-4, atol=1e-5)


# Selections that agree.


def test_selections_of_the_same_rows_move_together() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        hidden = m.layer(x).tanh()
        added: Tensor = m.norm(hidden)[:, 1] + hidden[:, 1:2].squeeze(1) + hidden[:, -4]
        return added

    module = randomised(Written(forward, layer=nn.Linear(WIDTH, WIDTH), norm=nn.LayerNorm(WIDTH)))
    run = assert_hoists(module, X, costly=2, slices=1)
    assert run.records[0].refusal_counts == {"already-rewritten": 2}


def test_equal_selections_are_moved_once() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        hidden = m.layer(x)
        added: Tensor = hidden[:, 0].sin() + hidden[:, 0].cos()
        return added

    module = randomised(Written(forward, layer=nn.Linear(WIDTH, WIDTH)))
    assert_hoists(module, X, costly=1, slices=1)


# How far.


def test_a_value_that_is_read_whole_is_sliced() -> None:
    def forward(m: Written, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = m.first(x)
        return m.second(hidden)[:, 0], hidden

    module = randomised(Written(forward, first=nn.Linear(WIDTH, WIDTH), second=nn.Linear(WIDTH, WIDTH)))
    run = assert_hoists(module, X, costly=1, slices=1)
    assert whole(run.program, _LINEAR, 1) == 1


def test_a_move_that_others_read_too_is_repeated() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        hidden = m.first(x).transpose(0, 1)
        added: Tensor = m.second(hidden)[0] + hidden.sum(0)
        return added

    module = randomised(Written(forward, first=nn.Linear(WIDTH, WIDTH), second=nn.Linear(WIDTH, WIDTH)))
    run = assert_hoists(module, X, costly=1, slices=1)
    # The first layer is needed whole: to compute its rows a second time would save nothing.
    assert whole(run.program, _LINEAR, 1) == 1


def test_merged_rows_that_are_read_whole_leave_what_reads_them_whole() -> None:
    def forward(m: Written, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = m.first(x.reshape(BATCH * TOKENS, WIDTH)).tanh()
        return m.norm(m.second(rows).reshape(BATCH, TOKENS, WIDTH))[:, 0], rows.sum(0)

    layers = {"first": nn.Linear(WIDTH, WIDTH), "second": nn.Linear(WIDTH, WIDTH), "norm": nn.LayerNorm(WIDTH)}
    run = assert_hoists(randomised(Written(forward, **layers)), X, costly=1, slices=1)
    assert whole(run.program, _LINEAR, 0, BATCH * TOKENS) == 2


def test_merged_rows_are_followed_with_free_sizes() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        rows = m.second(m.first(x.reshape(-1, WIDTH)).tanh()).reshape(x.shape[0], -1, WIDTH)
        last: Tensor = rows[:, -1]
        return last

    module = randomised(Written(forward, first=nn.Linear(WIDTH, WIDTH), second=nn.Linear(WIDTH, WIDTH)))
    assert_hoists(module, X, costly=2, slices=1, **FREE_BATCH)


def test_operands_that_are_broadcast_along_the_rows_stay() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        hidden = m.layer(x) * m.every + m.row * m.one
        added: Tensor = (hidden + hidden.mean(-1, keepdim=True)).softmax(-1)[:, 2]
        return added

    tables = {
        "every": nn.Parameter(torch.zeros(TOKENS, WIDTH)),
        "row": nn.Parameter(torch.zeros(WIDTH)),
        "one": nn.Parameter(torch.zeros(1, 1, WIDTH)),
    }
    module = Written(forward, layer=nn.Linear(WIDTH, WIDTH))
    for name, table in tables.items():
        module.register_parameter(name, table)
    # Of the input, and of the table that has a row for each token.
    assert_hoists(randomised(module), X, costly=1, slices=2)


def test_pieces_and_concatenations_of_features_are_followed() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        left, right = m.layer(x).chunk(2, -1)
        first, _ = torch.cat([left.unsqueeze(0), right.unsqueeze(0)]).unbind(0)
        turned: Tensor = torch.cat([-right[..., 1:], left, first], -1)[:, 0]
        return turned

    assert_hoists(randomised(Written(forward, layer=nn.Linear(WIDTH, WIDTH))), X, costly=1, slices=2)


FOLLOWED: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda y: torch.baddbmm(y @ torch.ones(WIDTH, WIDTH), y, torch.ones(BATCH, WIDTH, WIDTH), beta=0.5)[:, 0],
    lambda y: (y[:, None] @ torch.ones(3, WIDTH, 4))[:, :, 1],
    lambda y: (y[:, None] @ torch.ones(3, WIDTH, 4))[1],
    lambda y: nn.functional.rms_norm(y, (WIDTH,))[:, 4],
    lambda y: torch.native_layer_norm(y, (WIDTH,), None, None, 1e-5)[0][:, 0],
    lambda y: y.unsqueeze(1).squeeze(1).masked_fill(y > 0, -1.0)[:, 0],
    lambda y: torch.where(y > 0, y, 0.0).to(torch.float64).log_softmax(-1)[:, 2],
    lambda y: y[:, :, None].expand(-1, -1, 3, -1).flatten(2)[:, 1],
    lambda y: y.permute(1, 2, 0)[..., 1] - 1.0,
    lambda y: torch.addmm(torch.ones(4), y[1], torch.ones(WIDTH, 4))[1],
    lambda y: y.amax(-1, keepdim=True).expand(-1, -1, 3)[:, 0],
    lambda y: (y > 0).any(-1)[:, 0],
)


def test_operators_of_every_kind_are_followed() -> None:
    """Each behind a layer of its own, which computes fewer rows then."""

    def forward(m: Written, x: Tensor) -> list[Tensor]:
        return [function(layer(x)) for function, layer in zip(FOLLOWED, m.layers, strict=True)]

    layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in FOLLOWED)
    program = capture(randomised(Written(forward, layers=layers)), (X,))
    run = assert_rewrites(HoistSelections(), program, before={"aten.linear": len(layers)}, after={})
    rows = [math.prod(layer.meta["val"].shape[:-1]) for layer in run.program.graph.nodes if layer.target is _LINEAR]
    assert [at for at, count in enumerate(rows) if count not in (BATCH, TOKENS, 1)] == []


def test_a_batch_of_products_computes_the_selected_matrices() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        q, k = m.q(x), m.k(x)
        scores: Tensor = (q @ k.transpose(1, 2)).softmax(-1)[0]
        return scores

    module = randomised(Written(forward, q=nn.Linear(WIDTH, WIDTH), k=nn.Linear(WIDTH, WIDTH)))
    x = tokens(3)
    assert_hoists(module, x, costly=3, slices=1)


# Any stack of row-wise operators.

STEPS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "layer": lambda m, x: x + m(x),
    "norm": lambda m, x: nn.functional.layer_norm(x, (WIDTH,)) * 2.0,
    "gate": lambda m, x: x * torch.sigmoid(m(x)),
    "heads": lambda m, x: x.view(*x.shape[:2], 2, 3).transpose(1, 2).softmax(-1).transpose(1, 2).flatten(2),
    "merged": lambda m, x: m(x.reshape(-1, WIDTH)).relu().reshape(x.shape),
    "attention": lambda m, x: x + nn.functional.scaled_dot_product_attention(m(x), x, x),
    "written": lambda m, x: (m(x) @ x.transpose(1, 2)).softmax(-1) @ x,
    "mean": lambda m, x: x - x.mean(-1, keepdim=True),
}


class Stack(nn.Module):
    """Steps in a row, with a layer each, after one layer, of which one place of an axis is read."""

    def __init__(self, steps: list[str], index: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.steps, self.index = steps, index
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(len(steps) + 1))
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x)
        for step, layer in zip(self.steps, self.layers[1:], strict=True):
            x = STEPS[step](layer, x)
        return x[:, self.index]


@st.composite
def stacks(draw: st.DrawFn) -> tuple[Stack, Tensor]:
    """A stack, and its input."""
    steps = draw(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=5))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    return randomised(Stack(steps, draw(st.integers(-TOKENS, TOKENS - 1)), dtype)), X.to(dtype)


def assert_stack_hoists(module: Stack, x: Tensor, is_free: bool) -> None:
    program = capture(module, (x,), dynamic=FREE_BATCH["dynamic"] if is_free else None)
    run = assert_rewrites(HoistSelections(), program, before={}, after={})
    assert work(run.program) < work(program)


@settings(deadline=None, derandomize=True, max_examples=6)
@given(stacks(), st.booleans())
def test_any_stack_is_hoisted(stack: tuple[Stack, Tensor], is_free: bool) -> None:
    assert_stack_hoists(*stack, is_free)


@pytest.mark.slow
@settings(deadline=None, derandomize=True, max_examples=60)
@given(stacks(), st.booleans())
def test_any_of_many_stacks_is_hoisted(stack: tuple[Stack, Tensor], is_free: bool) -> None:
    assert_stack_hoists(*stack, is_free)
