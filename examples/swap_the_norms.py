"""Swap every LayerNorm of a trained vision transformer for a Unified Normalization, and fold them all away.

    python examples/swap_the_norms.py            # some minutes
    python examples/swap_the_norms.py power 200  # with PowerNorm, and fewer steps of recovery

The transformer is trained on scikit-learn's digits first. Its norms are measured on training images, replaced by fixed
scales, the layers behind them are refitted, the model is distilled from its original, and the scales fold into the
layers that read them: what is written has no normalization left. Every figure is of images that neither training nor
recovery saw.
"""

import sys
import tempfile

import torch
from digits_vit import load_images, split, train

import flowopt


def main() -> None:
    to = sys.argv[1] if len(sys.argv) > 1 else "unified"
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 600
    torch.set_num_threads(1)
    model, _ = train()
    images, labels = load_images()
    seen, held_out = split()
    program = flowopt.capture(model, (images[:3],), dynamic={"images": {0: "batch"}}, dims={"batch": (1, 64)})
    settings = flowopt.RecoverySettings(steps=steps, learning_rate=2e-3, loss="kl")
    with tempfile.TemporaryDirectory() as folder:
        result = flowopt.adapt(
            program,
            swap_norm=to,
            force=True,  # the scores of the first blocks are above the threshold
            data={"images": images[seen], "labels": labels[seen]},
            held_out={"images": images[held_out], "labels": labels[held_out]},
            batch_size=64,
            recovery=flowopt.RecoveryPlan(settings=settings),
            metric="accuracy:labels",
            folder=f"{folder}/digits",
            timing=False,
        )
        show(result)


def show(result: flowopt.AdaptResult) -> None:
    said, report = result.adaptation, result.report
    print(f"{report.outcome}: {len(said.swapped)} of {len(said.norms)} norms, {said.method}")
    print(f"{'original':14s} accuracy {said.original_metric:.4f}")
    for stage in said.stages:
        (agreement,) = stage.agreement
        print(f"{stage.name:14s} accuracy {stage.metric:.4f}, same class as the original {agreement.top1:.4f}")
    left = {name: count for name, count in report.census_lowered.items() if "Norm" in name or "Reduce" in name}
    print(f"normalizations in the ONNX file: {left or 'none'}")


if __name__ == "__main__":
    main()
