"""Assertions for tests of passes and of models, and the pytest plugin.

Give models randomised weights: default gains of one, biases of zero and statistics of (0, 1) make wrong folds
look right.
"""

from flowopt.testing.assert_equivalent import assert_equivalent
from flowopt.testing.assert_refuses import assert_refuses
from flowopt.testing.assert_rewrites import assert_rewrites

__all__ = ["assert_equivalent", "assert_refuses", "assert_rewrites"]
