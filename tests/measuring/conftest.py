"""One artifact for all tests of the folder."""

from pathlib import Path

import pytest

import flowopt
from flowopt.measuring.competitors import prepared
from flowopt.program.program import Program

TINY = "tests.measuring.models:tiny"


@pytest.fixture(scope="session")
def program() -> Program:
    return flowopt.load(TINY)


@pytest.fixture(scope="session")
def artifact(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured") / "tiny.flowopt"
    flowopt.optimize(program, folder=folder, verify="off")
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Torch's own export of the model."""
    (found,), failures = prepared(("ort",), TINY, tmp_path_factory.mktemp("exported"))
    assert not failures
    return Path(found.path)
