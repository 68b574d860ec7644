"""Swap every LayerNorm of a trained vision transformer for a Unified Normalization, and fold them all away.

    python examples/swap_the_norms.py            # two minutes
    python examples/swap_the_norms.py power

The transformer is trained on scikit-learn's digits first. Its norms are measured on training images, replaced by fixed
scales, the model is distilled from its original, and the scales fold into the layers that read them: what is written
has no normalization left. The accuracy is that on images which neither training nor recovery saw.
"""

import sys
import tempfile
from pathlib import Path

import torch

import flowopt
from examples.digits_vit import load_images, split, train


def adapted(to: str, folder: Path, seed: int = 0, steps: int = 600) -> flowopt.AdaptResult:
    """Train a transformer and swap its norms.

    Args:
        to: ``unified`` or ``power``.
        folder: of the artifact.
        seed: of the training and of the recovery.
        steps: of the recovery.
    """
    model, _ = train(seed=seed)
    images, labels = load_images()
    seen, held_out = split(seed)
    program = flowopt.capture(model, (images[:3],), dynamic={"images": {0: "batch"}}, dims={"batch": (1, 64)})
    settings = flowopt.RecoverySettings(steps=steps, learning_rate=1e-3, loss="kl", evaluate_every=max(1, steps // 10))
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


def main() -> None:
    to = sys.argv[1] if len(sys.argv) > 1 else "unified"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = adapted(to, Path(folder) / "digits")
        said = result.adaptation
        print(f"{len(said.swapped)} of {len(said.norms)} norms swapped to {to}")
        print(f"{'original':14s} accuracy {said.original_metric:.4f}")
        for stage in said.stages:
            (agreement,) = stage.agreement
            print(f"{stage.name:14s} accuracy {stage.metric:.4f}, same class as the original {agreement.top1:.4f}")
        assert result.artifact is not None and result.report is not None
        left = {name: count for name, count in result.report.census_lowered.items() if "Norm" in name}
        print(f"normalizations in the ONNX file: {left or 'none'}")


if __name__ == "__main__":
    main()
