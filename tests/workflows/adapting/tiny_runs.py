"""Adaptations of the tiny models, with some arguments changed."""

import dataclasses
from pathlib import Path
from typing import Any

import flowopt
from flowopt.program.program import Program
from tests.workflows.adapting.tiny import (
    labelled,
    post_norm_program,
    pre_norm_program,
    texts,
)

SETTINGS = flowopt.RecoverySettings(steps=60, learning_rate=3e-3, loss="mse", evaluate_every=15)
PLAN = flowopt.RecoveryPlan(settings=SETTINGS)
NOTHING = flowopt.RecoveryPlan(steps=())
QUICK = flowopt.RecoveryPlan(settings=dataclasses.replace(SETTINGS, steps=3, evaluate_every=1))


def adapted(folder: Path, program: Program | None = None, **changed: Any) -> flowopt.AdaptResult:
    """The classifier with every norm swapped, by default."""
    given: dict[str, Any] = {
        "swap_norm": "unified",
        "data": labelled(256, seed=1),
        "held_out": labelled(64, seed=2),
        "recovery": PLAN,
        "folder": folder,
        "timing": False,
    }
    return flowopt.adapt(pre_norm_program() if program is None else program, **(given | changed))


def tagger(folder: Path, **changed: Any) -> flowopt.AdaptResult:
    """The model with padding, with every norm swapped that can be."""
    given = {"data": texts(256, seed=1), "held_out": texts(64, seed=2), "force": True, "recovery": QUICK}
    return adapted(folder, post_norm_program(), **(given | changed))
