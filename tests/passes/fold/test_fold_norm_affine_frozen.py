"""Frozen norms before linear layers and convolutions: a product and a sum with stored vectors, or a batch norm."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from flowopt.ir.text import operator_census
from flowopt.passes.fold.fold_norm_affine import FoldNormAffine
from flowopt.passes.fold.fold_scale import FoldScale
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.testing import assert_refuses, assert_rewrites
from tests.passes.fold.affine_stacks import FrozenMap
from tests.passes.fold.norms import WIDTH
from tests.passes.fold.residual import Block
from tests.passes.programs import Written, canonical, normal, randomised, together

X = normal(2, 4, WIDTH)
BATCH_NORM = "aten._native_batch_norm_legit_no_training"
NONE_LEFT = {"aten.mul.Tensor": 0, "aten.div.Tensor": 0, "aten.add.Tensor": 0, "aten.sub.Tensor": 0, BATCH_NORM: 0}


def sites(module: nn.Module, *inputs: Tensor) -> list[fx.Node]:
    return FoldNormAffine().sites(canonical(capture(module.eval(), inputs)))


def read_by(norm: nn.Module, *readers: nn.Module, **more: Any) -> nn.Module:
    """The norm's output into every reader."""
    parts = {"norm": norm, "readers": nn.ModuleList(readers), **more}
    return randomised(Written(lambda m, x: [reader(y) for y in [m.norm(x)] for reader in m.readers], **parts))


SPELLINGS: dict[str, Callable[[Written, Tensor], Tensor]] = {
    "mul and add": lambda m, x: x * m.scale + m.shift,
    "add of a product": lambda m, x: m.shift + m.scale * x,
    "div and sub": lambda m, x: x / m.scale.exp() - m.shift,
    "from the shift": lambda m, x: m.shift - m.scale * x,
    "scaled shift": lambda m, x: torch.add(m.scale * x, m.shift, alpha=0.5),
    "written batch norm": lambda m, x: x * (m.scale * torch.rsqrt(m.shift.square() + 0.1)) + m.shift,
}


def test_every_spelling_folds_into_all_readers() -> None:
    def forward(spelling: Callable[[Written, Tensor], Tensor]) -> Callable[[Written, Tensor], list[Tensor]]:
        return lambda m, x: [reader(y) for y in [spelling(m, x)] for reader in (m.first, m.second)]

    cases: list[tuple[nn.Module, Tensor]] = []
    for spelling in SPELLINGS.values():
        vectors = {"scale": nn.Parameter(torch.ones(WIDTH)), "shift": nn.Parameter(torch.ones(WIDTH))}
        layers = {"first": nn.Linear(WIDTH, 3), "second": nn.Linear(WIDTH, 2, bias=False)}
        cases.append((randomised(Written(forward(spelling), **vectors, **layers)), X))
    module, inputs = together(cases)
    before = {"aten.linear": 2 * len(SPELLINGS)}
    run = assert_rewrites(FoldNormAffine(), module, inputs, before=before, after=before | NONE_LEFT)
    assert [one.summary for one in run.records[0].applied] == ["folded into 2 layers"] * len(SPELLINGS)
    assert run.records[0].refused == ()


def test_two_maps_in_a_row_fold_one_after_the_other() -> None:
    module = read_by(
        nn.Sequential(FrozenMap(WIDTH, "mul and add", 0), FrozenMap(WIDTH, "mul and add", 9)), Block(WIDTH)
    )
    assert_rewrites(FoldNormAffine(), module, (X,), before={"aten.mul.Tensor": 2}, after=NONE_LEFT)


def test_maps_of_a_stream_fold_into_its_branches_where_they_stand_before_them() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        for map_, block in zip(m.maps, m.blocks, strict=True):
            x = x + block(map_(x))
        out: Tensor = m.head(m.last(x))
        return out

    maps = nn.ModuleList(FrozenMap(WIDTH, "mul and add", 10 * i) for i in range(2))
    blocks = nn.ModuleList(Block(WIDTH) for _ in range(2))
    module = Written(
        forward, maps=maps, blocks=blocks, last=FrozenMap(WIDTH, "mul and add", 30), head=nn.Linear(WIDTH, 2)
    )
    after = NONE_LEFT | {"aten.add.Tensor": 2}
    free: dict[str, Any] = {"dynamic": {"x": {0: "batch"}}, "dims": {"batch": (1, 8)}}
    assert_rewrites(FoldNormAffine(), module.eval(), (X,), before={"aten.mul.Tensor": 3}, after=after, **free)


def test_a_batch_norm_folds_into_layers_behind_moves() -> None:
    module = read_by(
        nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 3), nn.Sequential(nn.Unflatten(0, (2, 4)), nn.Linear(WIDTH, 2))
    )
    program = canonical(capture(module, (X.flatten(0, 1),)))
    assert_rewrites(FoldNormAffine(), program, before={BATCH_NORM: 1}, after=NONE_LEFT)


def test_a_batch_norm_folds_into_unpadded_convolutions() -> None:
    convolutions = [
        nn.Conv2d(4, 6, 3, groups=2, bias=False),
        nn.Conv2d(4, 3, 2, stride=2, dilation=2),
        nn.Conv2d(4, 8, 1, groups=4),
        nn.Conv2d(4, 2, 3, padding="valid"),
    ]
    program = canonical(capture(read_by(nn.BatchNorm2d(4), *convolutions), (normal(2, 4, 7, 7),)))
    assert_rewrites(FoldNormAffine(), program, before={BATCH_NORM: 1}, after=NONE_LEFT)


def test_refuses_a_batch_norm_before_a_padded_convolution() -> None:
    program = canonical(capture(read_by(nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, padding=1)), (normal(2, 4, 7, 7),)))
    assert_refuses(FoldNormAffine(), program, code="padded-reader")


def test_a_batch_norm_without_shift_folds_into_a_padded_convolution() -> None:
    norm = nn.BatchNorm2d(4)
    module = read_by(norm, nn.Conv2d(4, 3, 3, padding=1))
    norm.bias.data.zero_()
    assert norm.running_mean is not None
    norm.running_mean.zero_()
    program = canonical(capture(module, (normal(2, 4, 7, 7),)))
    run = assert_rewrites(FoldNormAffine(), program, before={BATCH_NORM: 1}, after=NONE_LEFT)
    assert run.program.tensors["readers.0.bias"] is program.tensors["readers.0.bias"]


@pytest.mark.parametrize("code", ["post-norm", "not-linear-reader", "graph-output"])
def test_refuses_a_frozen_norm_that_others_read(code: str) -> None:
    ends: dict[str, Callable[[Written, Tensor], Any]] = {
        "post-norm": lambda m, y: y + m.fc(y),
        "not-linear-reader": lambda m, y: m.fc(y.relu()),
        "graph-output": lambda m, y: (m.fc(y), y),
    }
    parts = {"norm": nn.BatchNorm1d(WIDTH), "map": FrozenMap(WIDTH, "mul and add", 0), "fc": nn.Linear(WIDTH, WIDTH)}
    module = Written(lambda m, x: [ends[code](m, m.norm(x)), ends[code](m, m.map(x))], **parts).eval()
    run = assert_refuses(FoldNormAffine(), canonical(capture(module, (X[0],))), code=code)
    assert len(run.records[0].refused) == 2


def small_channel(scale: float) -> tuple[nn.Module, Tensor]:
    """A frozen map in float16 with one channel of that scale, between layers, and an input."""
    norm = FrozenMap(WIDTH, "mul and add", 0)
    module = read_by(nn.Sequential(nn.Tanh(), norm), nn.Linear(WIDTH, 3))
    norm.scale.data = torch.where(torch.arange(WIDTH) == 2, scale, norm.scale.data.sign())
    return module.half(), X.half()


def test_refuses_a_scale_that_leaves_no_normal_number_of_a_column() -> None:
    # What the column reads may be as large as its scale is small: beside the others of the row it counts.
    module, x = small_channel(2e-5)
    assert_refuses(FoldNormAffine(), module, (x,), code="extreme-scale")


def test_refuses_such_a_column_of_one_group_of_a_convolution() -> None:
    # The first column of the other group has normal numbers.
    norm = nn.BatchNorm2d(4)
    module = read_by(norm, nn.Conv2d(4, 6, 1, groups=2))
    norm.weight.data = torch.tensor([1.0, 1.0, 1e-5, 1.0])
    image = normal(2, 4, 3, 3).half()
    assert_refuses(FoldNormAffine(), canonical(capture(module.half(), (image,))), code="extreme-scale")


def test_a_scale_of_zero_folds_into_a_column_of_zeros() -> None:
    module, x = small_channel(0.0)
    run = assert_rewrites(FoldNormAffine(), module, (x,), before={"aten.mul.Tensor": 1}, after=NONE_LEFT)
    assert not run.program.tensors["readers.0.weight_1"][:, 2].any()


def test_a_small_gain_of_one_feature_of_a_live_norm_folds_in_float16() -> None:
    module = read_by(nn.LayerNorm(WIDTH, bias=False), nn.Linear(WIDTH, 3))
    module.norm.weight.data = torch.tensor([1.0] * (WIDTH - 1) + [2e-5])  # type: ignore[union-attr]
    assert_rewrites(FoldNormAffine(), module.half(), (X.half(),), before={}, after={"aten.linear": 1})


def test_products_that_are_no_frozen_norm_are_no_sites() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        product = x * m.scale
        return [
            m.fc(x * m.scale),
            m.fc(product + m.shift),
            m.fc(product),
            m.fc(x * m.scale + x),
            m.fc(x * m.row + m.scale),
        ]

    vectors = {
        "scale": nn.Parameter(normal(WIDTH)),
        "shift": nn.Parameter(normal(WIDTH)),
        "row": nn.Parameter(normal(4, 1)),
    }
    assert sites(Written(forward, **vectors, fc=nn.Linear(WIDTH, 3)), X) == []


def test_a_live_norm_with_its_gain_and_shift_written_behind_it_is_one_site() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        out: Tensor = m.fc(nn.functional.layer_norm(x, (WIDTH,)) * m.scale + m.shift)
        return out

    vectors = {"scale": nn.Parameter(normal(WIDTH)), "shift": nn.Parameter(normal(WIDTH))}
    (site,) = sites(Written(forward, **vectors, fc=nn.Linear(WIDTH, 3)), X)
    assert site.target is torch.ops.aten.layer_norm.default


def test_nothing_is_left_of_a_frozen_norm_between_two_layers() -> None:
    module = read_by(nn.Sequential(nn.Linear(WIDTH, WIDTH), FrozenMap(WIDTH, "mul and add", 0)), nn.Linear(WIDTH, 3))
    run = run_passes(capture(module, (X,)), [FoldScale(), FoldNormAffine()])
    census = operator_census(run.program.graph)
    assert {name: census[name] for name in NONE_LEFT} == NONE_LEFT


@pytest.mark.parametrize("reason", ["another axis", "too large", "too small"])
def test_a_frozen_norm_that_its_readers_cannot_take_is_left_to_fold_scale(reason: str) -> None:
    module = Written(
        lambda m, x: m.reader(m.layer(x) * m.scale + m.shift),
        layer=nn.Conv1d(WIDTH, WIDTH, 1),
        reader=nn.Linear(WIDTH, 2),
        scale=nn.Parameter(torch.full((WIDTH, 1), 100.0 if reason == "too large" else 0.01)),
        shift=nn.Parameter(normal(WIDTH, 1)),
    )
    if reason != "another axis":
        module.layer = nn.Linear(WIDTH, WIDTH)
        module.scale.data, module.shift.data = module.scale.data.flatten(), module.shift.data.flatten()
        module.reader.weight.data.fill_(1e3 if reason == "too large" else 1e-3)
    randomised(module.layer)
    program = canonical(capture(module.half().eval(), (normal(2, WIDTH, WIDTH).half(),)))
    assert FoldNormAffine().sites(program)
    run = assert_rewrites(FoldScale(), program, before={"aten.mul.Tensor": 1}, after={"aten.mul.Tensor": 0})
    assert run.records[0].applied[0].summary.startswith("folded into the outputs of")
