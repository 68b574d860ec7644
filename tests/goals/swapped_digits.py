"""The vision transformer on digits, trained anew for each seed, with every norm swapped and folded away."""

import math
from pathlib import Path

import flowopt
from examples.digits_vit import load_images, split, train

STEPS = 1000


def adapted(to: str, folder: Path, seed: int = 0, steps: int = STEPS) -> flowopt.AdaptResult:
    """Train the transformer and swap its norms, measured and recovered on the images that it was trained on.

    Args:
        to: ``unified`` or ``power``.
        folder: of the artifact.
        seed: of the training and of the recovery.
        steps: of the recovery.
    """
    # No deadline: a busy machine would stop the training before the model is any good.
    model, _ = train(seconds_limit=math.inf, seed=seed)
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
