"""A network and its sampler in one file: digits out of noise, with the loop and its guidance inside.

    python examples/fold_a_sampler.py           # trains for a minute, then folds four samplers
    python examples/fold_a_sampler.py --quick   # some seconds of each: poor digits, the same checks

Every file is verified against the network in flowopt's loop and in the one below (the column "error"), then run
without them. Frechet distances are those between the features of a small classifier on the samples and on half of the
images. The last row is the other half's.
"""

import argparse
import struct
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from digits_flow import FIRST_TIME, NO_LABEL, TIME_SCALE, DigitsFlow, train
from digits_vit import CLASSES, load_images
from torch import Tensor

import flowopt
from flowopt.sampling import ClassifierFree, Epilogue, make_sampler

SAMPLERS = (("euler", 4), ("heun", 4), ("euler", 20), ("heun", 20))
GUIDANCE = 1.5
Loop = Callable[[Mapping[str, Tensor]], Tensor]
ROW = "{:9}{:>12}  {:9}{:>5}  {:11}{:>8}  {:>7}  {:>8}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="train for seconds, fold one sampler")
    parser.add_argument("--folder", type=Path, default=Path("digits.flowopt"), help="of files and pictures")
    options = parser.parse_args()
    # The network is tiny: a second thread only waits, and for long where another process has the core.
    torch.set_num_threads(1)
    images, labels = load_images()
    started = time.monotonic()
    # The network is trained on images in [-1, 1].
    network = train(2 * images - 1, labels, *((60, 1) if options.quick else ()))
    print(f"trained in {time.monotonic() - started:.0f} s")
    judge = Judge(images, labels)
    program = captured(network, largest_batch=len(judge.labels))
    options.folder.mkdir(parents=True, exist_ok=True)
    write_grid(options.folder / "images.png", images, labels)
    print(ROW.format("sampler", "evaluations", "form", "KB", "verdict", "error", "Frechet", "accuracy"))
    for solver, steps in SAMPLERS[1:2] if options.quick else SAMPLERS:
        by_hand = plain_loop(network, solver, steps)
        print(fold(program, by_hand, solver, steps, judge, options.folder), flush=True)
    print(ROW.format("images", *[""] * 5, *judge.row(judge.others, judge.labels)))
    print(f"pictures: {options.folder}/*.png")


def captured(network: DigitsFlow, largest_batch: int) -> flowopt.Program:
    """One evaluation, its batch free."""
    example = {"x": torch.zeros(3, 1, 8, 8), "t": torch.full((3,), 500.0), "label": torch.tensor([3, 1, 4])}
    free = {name: {0: "batch"} for name in example}
    # Guidance runs the network on twice the batch.
    return flowopt.capture(network, (), example, dynamic=free, dims={"batch": (1, 2 * largest_batch)})


def fold(program: flowopt.Program, by_hand: Loop, solver: str, steps: int, judge: "Judge", folder: Path) -> str:
    """Write a sampler's file and a picture of what it makes, and return its row of the table."""
    name = f"{solver}-{steps}"
    result = flowopt.optimize_sampler(
        program,
        make_sampler(solver, steps, convention="rectified-flow"),
        guidance=ClassifierFree(GUIDANCE, {"label": NO_LABEL}),
        output=Epilogue(scale=0.5, shift=0.5, clamp=(0.0, 1.0)),
        library=by_hand,
        folder=folder / name,
    )
    loop, verdict = result.report.loop, result.verdict
    assert loop is not None, "the report of a sampler has a loop"
    if not verdict:
        raise SystemExit(f"{name}: {verdict.outcome.value}: {verdict.reason}")
    # As many samples as there are other images, and with their labels: the distances can be compared.
    label = judge.labels
    noise = torch.randn(len(label), 1, 8, 8, generator=torch.Generator().manual_seed(0))
    artifact = flowopt.Artifact.open(folder / name)
    samples = artifact.run(noise=noise, label=label)
    assert isinstance(samples, Tensor), "a sampler returns one tensor"
    write_grid(folder / f"{name}.png", samples, label)
    size = sum(path.stat().st_size for path in artifact.folder.iterdir() if path.name != "report.json")
    error = max(case.reference_error or 0.0 for case in loop.cases)
    outcome = verdict.outcome.value
    found = (loop.evaluations, loop.form, size // 1000, outcome, f"{error:.0e}", *judge.row(samples, label))
    return ROW.format(f"{solver} {steps}", *found)


def plain_loop(network: DigitsFlow, solver: str, steps: int) -> Loop:
    """The sampler as one would write it, from noise and labels to images in [0, 1]."""

    def velocity(x: Tensor, i: int, label: Tensor) -> Tensor:
        t = x.new_full((len(x),), TIME_SCALE * (FIRST_TIME + (1 - FIRST_TIME) * i / steps))
        given, without = network(x, t, label), network(x, t, torch.full_like(label, NO_LABEL))
        guided: Tensor = without + GUIDANCE * (given - without)
        return guided

    @torch.no_grad()
    def sample(inputs: Mapping[str, Tensor]) -> Tensor:
        x, label = inputs["noise"], inputs["label"]
        for i in range(steps):
            v = velocity(x, i, label)
            if solver == "heun":
                v = (v + velocity(x + v / steps, i + 1, label)) / 2
            x = x + v / steps
        return (x / 2 + 0.5).clamp(0, 1)

    return sample


class Judge:
    """A classifier of the real images, and how far from them others are in its features."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        from sklearn.neural_network import MLPClassifier

        # All images teach it: it is to know good digits, not to be good at new ones.
        self.classifier = MLPClassifier((32,), learning_rate_init=5e-3, tol=1e-3, random_state=0)
        self.classifier.fit(images.flatten(1), labels)
        self.real = images[::2]
        self.others, self.labels = images[1::2], labels[1::2]

    def row(self, images: Tensor, labels: Tensor) -> tuple[str, str]:
        """Distance from half of the real images, and how many are seen as their label."""
        return f"{self.distance(images):.2f}", f"{self.classifier.score(images.flatten(1), labels):.3f}"

    def distance(self, images: Tensor) -> float:
        """Frechet distance: |m - m'|^2 + trace(C + C' - 2 (C C')^(1/2)), of means and covariances of features."""
        (mean, covariance), (other_mean, other_covariance) = self._moments(self.real), self._moments(images)
        # C C' has the eigenvalues of C^(1/2) C' C^(1/2), which are not negative; its root has their roots.
        eigenvalues = np.linalg.eigvals(covariance @ other_covariance).real.clip(min=0.0)
        trace = np.trace(covariance + other_covariance) - 2 * np.sqrt(eigenvalues).sum()
        return float(((mean - other_mean) ** 2).sum() + trace)

    def _moments(self, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
        weight, bias = self.classifier.coefs_[0], self.classifier.intercepts_[0]
        features = np.maximum(images.flatten(1).double().numpy() @ weight + bias, 0.0)
        return features.mean(axis=0), np.cov(features, rowvar=False)


def write_grid(path: Path, images: Tensor, labels: Tensor, rows: int = 8, zoom: int = 4) -> None:
    """A PNG with one column per label, of images (count, 1, 8, 8) in [0, 1]."""
    columns = [images[labels == label][:rows, 0] for label in range(CLASSES)]
    framed = torch.nn.functional.pad(torch.stack(columns), (1, 1, 1, 1), value=0.25)
    grid = framed.permute(1, 2, 0, 3).reshape(rows * 10, CLASSES * 10)
    pixels = (255 * grid).round().to(torch.uint8).repeat_interleave(zoom, 0).repeat_interleave(zoom, 1)
    height, width = pixels.shape
    scanlines = b"".join(b"\0" + row.numpy().tobytes() for row in pixels)  # 0: a line that is not filtered
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8 bits of grey
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(scanlines)), (b"IEND", b""))
    written = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        written += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(written)


if __name__ == "__main__":
    main()
