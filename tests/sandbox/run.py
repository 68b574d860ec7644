"""Run one of ``tests.sandbox.functions`` in a process of its own."""

from pathlib import Path
from typing import Any

from flowopt.formats.limits import DEFAULT_LIMITS, Limits
from flowopt.sandbox.isolated import run_isolated

ROOT = Path(__file__).resolve().parents[2]


def run(name: str, limits: Limits = DEFAULT_LIMITS, extra_memory: int = 0, **arguments: Any) -> Any:
    return run_isolated(f"tests.sandbox.functions:{name}", arguments, limits=limits, extra_memory=extra_memory)
