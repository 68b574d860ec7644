"""The vision transformer on digits, trained anew for each seed, with every norm swapped and folded away."""

import itertools
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import flowopt
from examples.digits_vit import DigitsViT, load_images, split, train

STEPS = 1000


@cache
def trained(count: int, least: float) -> Mapping[int, DigitsViT]:
    """The first so many seeds whose transformer is right on at least that share of its held-out images."""
    found: dict[int, DigitsViT] = {}
    for seed in itertools.count():
        # No deadline: a busy machine would stop the training before the model is any good.
        model, accuracy = train(seconds_limit=math.inf, seed=seed)
        if accuracy >= least:
            found[seed] = model
        if len(found) == count:
            return found
    raise AssertionError("seeds do not end")


def adapted(model: DigitsViT, to: str, folder: Path, seed: int, steps: int = STEPS) -> flowopt.AdaptResult:
    """Swap a transformer's norms, measured and recovered on the images that it was trained on.

    Args:
        model: trained with ``seed``.
        to: ``unified`` or ``power``.
        folder: of the artifact.
        seed: of the split, and of the recovery.
        steps: of the recovery.
    """
    images, labels = load_images()
    seen, held_out = split(seed)
    program = flowopt.capture(model, (images[:3],), dynamic={"images": {0: "batch"}}, dims={"batch": (1, 64)})
    settings = flowopt.RecoverySettings(steps=steps, learning_rate=2e-3, loss="kl", evaluate_every=max(1, steps // 10))
    return flowopt.adapt(
        program,
        swap_norm=to,
        force=True,
        data={"images": images[seen], "labels": labels[seen]},
        held_out={"images": images[held_out], "labels": labels[held_out]},
        batch_size=64,
        recovery=flowopt.RecoveryPlan(settings=settings),
        metric="accuracy:labels",
        folder=folder,
        timing=False,
        seed=seed,
    )
