"""One artifact for all tests of the folder."""

from pathlib import Path

import pytest

import flowopt
from flowopt.measuring.competitors import PLAIN, prepared
from flowopt.measuring.contender import Contender
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
def plain_exports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Contender, ...]:
    """Torch's own exports of the model, at both opsets."""
    found, failures = prepared(PLAIN, TINY, tmp_path_factory.mktemp("exported"))
    assert not failures
    return tuple(found)


@pytest.fixture(scope="session")
def exported(plain_exports: tuple[Contender, ...]) -> Path:
    """The file of the first."""
    return Path(plain_exports[0].path)
