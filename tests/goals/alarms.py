"""The row of false alarms: right rewrites that verification must not accuse."""

from collections import Counter

from tests.goals.row import Measured, Row
from tests.mutation.right.models import SMALL
from tests.mutation.right.pairs import enumerated
from tests.mutation.right.score import score

_PAIRS, _KINDS, _MODELS = 2000, 20, 5


def _alarms() -> Measured:
    found = score(enumerated())
    accused = tuple(str(one) for one in found if not one.is_kept)
    kinds = Counter(one.pair.kind for one in found)
    models = {one.pair.model for one in found}
    enough = len(found) >= _PAIRS and len(kinds) >= _KINDS and len(models - set(SMALL)) >= _MODELS
    value = f"{len(accused)} of {len(found)} accused, {len(kinds)} kinds, {len(models)} models"
    return Measured(value, enough and not accused, accused)


ROWS = (
    Row("verify.alarms", f"0 of at least {_PAIRS:,} accused, {_KINDS} kinds, {_MODELS} models", _alarms, is_long=True),
)
