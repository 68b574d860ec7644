"""What the tests of the assertions share."""

import pytest

from flowopt.program.capture import capture
from flowopt.program.program import Program
from tests.testing.negations import X, negations


@pytest.fixture(scope="session")
def program() -> Program:
    # Captured once: no pass here changes it; those that write in place get a model of their own.
    return capture(negations(), (X,), dynamic={"x": {0: "batch"}})
