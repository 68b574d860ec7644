"""Targets by name."""

import pytest

from flowopt.errors import UserError
from flowopt.lowering.targets import TARGETS, target
from flowopt.runtime.layout import MODEL_FILES


def test_every_target_is_found_by_its_name() -> None:
    for name, one in TARGETS.items():
        if name != "tvm-cuda":  # which needs an architecture
            assert target(name) is one
        assert one.name == name
        assert one.model_name in MODEL_FILES and one.precision == "fp32"


def test_an_unknown_target_lists_the_known() -> None:
    with pytest.raises(UserError, match="cpu, cuda, torch"):
        target("tpu")
