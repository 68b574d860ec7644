"""A wall clock that tests can wait for."""

import pytest

from flowopt.sandbox import isolated


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock allows 2 seconds in all where the limit is one."""
    monkeypatch.setattr(isolated, "_GRACE_SECONDS", 1.0)
