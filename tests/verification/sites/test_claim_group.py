from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from flowopt.ir import constants
from flowopt.ir.evaluate import called
from flowopt.passes.fold.fold_norm_mean import FoldNormMean
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.report.passes import PassRecord
from flowopt.rewrite import Edit
from flowopt.rewrite.edit import Claim
from flowopt.verification.sites import claim_group
from flowopt.verification.sites.claim_group import ClaimGroup, LocatedClaim, claim_groups
from flowopt.verification.sites.region import Region
from flowopt.verification.verify_passes import VerifyPasses
from tests.verification.substitute import aten, judged, substitute
from tests.zoo.models import randomise

WIDTH = 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Stack(nn.Module):
    """Blocks on a residual stream of embeddings."""

    def __init__(self, depth: int, head: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.table = nn.Embedding(11, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.head = head

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(functional.layer_norm(x, (WIDTH,)))


def stack(depth: int, head: Callable[[Tensor], Tensor] = torch.sin) -> Program:
    module = Stack(depth, head).eval()
    randomise(module, seed=depth)
    ids = torch.arange(24).reshape(4, 6) % 11
    return capture(module, (ids,), dynamic={"ids": {0: "batch", 1: "sequence"}})


def hidden(x: Tensor) -> Tensor:
    """Always zero: what is wrong before it shows at sites alone."""
    return torch.relu(-torch.relu(x))


def evaluated(depth: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many operators the site check calls for the norms of a stack."""
    count = 0

    def counted(node: fx.Node, lookup: Callable[[fx.Node], object], *, raised: bool) -> object:
        nonlocal count
        count += 1
        return called(node, lookup, raised=raised)

    monkeypatch.setattr(constants, "called", counted)
    (record,) = run_passes(stack(depth), [FoldNormMean()], [VerifyPasses()]).records
    monkeypatch.undo()
    assert record.outcome == "kept", record.reason
    return count


def test_the_sites_of_a_stream_cost_no_more_than_in_proportion_to_its_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    shallow, deep = (evaluated(depth, monkeypatch) for depth in (3, 12))
    assert 0 < deep <= 4 * shallow


def from_the_ids(edit: Edit, norm: fx.Node) -> fx.Node:
    """The norm of a stream that is looked up and added up again: a region that reaches back to the ids."""

    def again(node: fx.Node) -> fx.Node:
        parts = [again(part) for part in node.args[:1] if isinstance(part, fx.Node) and node.target is aten.add.Tensor]
        return edit.call(node.target, *parts, *node.args[len(parts) :])

    source = norm.args[0]
    assert isinstance(source, fx.Node)
    return edit.call(aten.layer_norm.default, again(source), *norm.args[1:])


def last_norm(program: Program) -> str:
    *_, last = program.graph.find_nodes(op="call_function", target=aten.layer_norm.default)
    return str(last.name)


def judged_with(program: Program, wrong: Callable[[Edit, fx.Node], fx.Node]) -> PassRecord:
    """All norms are computed from the ids again, and the last of them is wrong."""

    def build(edit: Edit, norm: fx.Node) -> fx.Node:
        right = from_the_ids(edit, norm)
        return wrong(edit, right) if norm.name == last_norm(program) else right

    return judged(program, substitute(aten.layer_norm.default, build))


def off(edit: Edit, value: fx.Node) -> fx.Node:
    return edit.call(aten.mul.Tensor, value, 1 + 1e-6)


def of_captured_size(edit: Edit, value: fx.Node) -> fx.Node:
    """Legal while sizes are symbols, but it selects the captured number of elements."""
    flat = edit.call(aten.reshape.default, value, [-1])
    shown = edit.call(aten.index_select.default, flat, 0, edit.call(aten.arange.default, 4 * 6 * WIDTH))
    sizes = [edit.call(aten.sym_size.int, value, axis) for axis in (0, 1)]
    whole = edit.call(aten.cat.default, [shown, edit.call(aten.slice.Tensor, flat, 0, 4 * 6 * WIDTH, 2**62)])
    return edit.call(aten.reshape.default, whole, [*sizes, WIDTH])


def places(record: PassRecord) -> set[str]:
    assert record.verdict is not None
    return {finding.where for finding in record.verdict.findings if finding.gate == "site"}


def test_right_claims_that_reach_back_to_the_ids_are_kept() -> None:
    record = judged_with(stack(4, hidden), lambda _, value: value)
    assert record.outcome == "kept", record.reason


def test_a_wrong_claim_in_the_deepest_layer_is_caught_at_its_site_and_reverted() -> None:
    program = stack(4, hidden)
    record = judged_with(program, off)
    assert record.outcome == "reverted"
    assert places(record) == {last_norm(program)}


def test_a_claim_that_does_not_run_is_accused_alone() -> None:
    program = stack(4, hidden)
    record = judged_with(program, of_captured_size)
    assert record.verdict is not None
    assert any("does not run" in finding.message for finding in record.verdict.findings if finding.gate == "site")
    assert places(record) == {last_norm(program)}


def test_a_wrong_claim_is_caught_in_parts_of_a_group_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim_group, "_MOST_BYTES", 1)
    program = stack(3, hidden)
    assert places(judged_with(program, off)) == {last_norm(program)}


class WrongInTheDeepestLayer(FoldNormMean):
    """Centres all writers but the last norm's: that one is scaled too."""

    def rewrite(self, edit: Edit, plan: object) -> str:
        text = super().rewrite(edit, plan)  # type: ignore[arg-type]  # as it came from check
        last = edit.claims[-1]
        new = edit.program.node(last.new)
        with edit.before(new.next):
            scaled = edit.call(aten.mul.Tensor, new, 1 + 1e-6)
        new.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not scaled, propagate_meta=False)
        edit.claims[-1] = Claim(last.old, scaled.name)
        return text


def test_a_mean_fold_that_is_wrong_in_the_deepest_layer_alone_is_caught_at_its_site() -> None:
    program = stack(4, hidden)
    first, *_ = program.graph.find_nodes(op="call_function", target=aten.layer_norm.default)
    record = judged(program, WrongInTheDeepestLayer())
    assert record.outcome == "reverted"
    assert places(record) == {first.name}  # the stream is one site, named after its first norm


def located(program: Program, name: str, root: str) -> LocatedClaim:
    region = Region(program.node(name), frozenset({name}), (program.node(root),), frozenset())
    return LocatedClaim(name, Claim(name, name), region)


class TestClaimGroup:
    def test_claims_of_other_roots_or_regimes_are_apart(self) -> None:
        program = stack(2)
        claims = [
            located(program, name, root) for name, root in (("relu", "ids"), ("sin", "ids"), ("relu_1", "linear"))
        ]
        groups = claim_groups(zip([*claims, claims[1]], [("a",), ("a",), ("a",), ("b",)], strict=True))
        assert [(group.kinds, [one.anchor for one in group.members]) for group in groups] == [
            (("a",), ["relu", "sin"]),
            (("a",), ["relu_1"]),
            (("b",), ["sin"]),
        ]

    def test_parts_keep_no_more_than_fits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(claim_group, "_MOST_BYTES", 20)
        program = stack(2)
        names = ("relu", "relu_1", "sin", "relu")
        group = ClaimGroup(tuple(located(program, name, "ids") for name in names), ("a",))
        parts = group.parts({"relu": 5, "relu_1": 5, "sin": 30}.__getitem__, 2)
        assert [[one.anchor for one in part.members] for part in parts] == [["relu", "relu_1"], ["sin"], ["relu"]]
