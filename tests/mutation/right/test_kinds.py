"""Every kind on a small model: it changes the graph, computes the same in float64, and is not accused."""

from functools import cache

import pytest

from flowopt.ir.fingerprint import fingerprint
from flowopt.ir.metadata import recorded_tensor
from flowopt.pipeline.runner import run_passes
from flowopt.rewrite.driver import apply
from flowopt.verification.inputs.cases import quick_cases
from flowopt.verification.running import run_case
from flowopt.verification.verify_passes import VerifyPasses
from tests.mutation.right.kind import at_node
from tests.mutation.right.kinds import KINDS
from tests.mutation.right.models import SMALL, program
from tests.mutation.right.pairs import Pair, sites
from tests.mutation.right.score import scored


@cache
def first_pair(kind: str) -> Pair:
    """The first node of the first small model at which the kind is right."""
    model, node = next((model, node) for model in SMALL for node in sites(KINDS[kind], program(model)))
    return Pair(kind, model, node, seed=0)


@cache
def verifier(model: str) -> VerifyPasses:
    """One for all rewrites of a model: what is known of the original is computed once."""
    return VerifyPasses(seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_it_changes_the_graph_and_nothing_but_rounding(kind: str) -> None:
    """Checked without the verifier: in float64, on ordinary numbers, both sides agree to 1e-10 of the largest."""
    pair = first_pair(kind)
    original = program(pair.model)
    before, after = original.raised_copy(), original.raised_copy()
    apply(at_node(KINDS[kind], pair.node), after)
    assert fingerprint(after.graph, {}) != fingerprint(before.graph, {})
    case = quick_cases(original, seed=1)[0]
    for name, wanted in run_case(before, case).items():
        found = run_case(after, case)[name]
        assert float((found - wanted).abs().max()) <= 1e-10 * float(wanted.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_not_accused(kind: str) -> None:
    pair = first_pair(kind)
    found = scored(pair, verifier(pair.model))
    assert found.is_kept, found.reason


@pytest.mark.parametrize("kind", ["bias-as-column", "conv-as-patches", "conv-padding-apart", "padded-concat"])
def test_free_sizes_stay_free(kind: str) -> None:
    """Propagating the shapes of new nodes must not fix a size of the captured program at its traced value."""
    pair = first_pair(kind)
    original = program(pair.model)
    run_passes(original, [at_node(KINDS[kind], pair.node)])
    value = recorded_tensor(original.node(original.inputs[0].name))
    assert value is not None
    assert not any(str(size).isdigit() for size in value.shape[:2])
