"""Two trained models through flowopt: what is rewritten, what is refused and why, and what it buys.

    make demo

MiniLM is a trained sentence encoder: post-norm, so its gains do not fold, and the report says so. The digits ViT is
trained here in seconds: its batch norms and layer-norm gains all fold. Both end as verified ONNX files.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_EXAMPLES = Path(__file__).resolve().parent
_ROUNDS = 5


def main() -> None:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("\n=== MiniLM, a trained sentence encoder\n", flush=True)
        flowopt("optimize", "minilm:factory", "--target", "cpu", "-o", str(folder / "minilm.flowopt"))
        print_latency("minilm", folder / "minilm.flowopt")
        print("\n=== A vision transformer with a BatchNorm stem, trained on scikit-learn's digits\n", flush=True)
        run([sys.executable, str(_EXAMPLES / "digits_vit.py")], folder)
        archive = str(folder / "digits_vit.pt2")
        flowopt("optimize", archive, "--target", "cpu", "-o", str(folder / "digits_vit.flowopt"))
        print_latency("digits_vit", folder / "digits_vit.flowopt")
    print(f"\nThe demo took {time.perf_counter() - started:.0f} s.")


def flowopt(*arguments: str) -> None:
    """Run the command line, as a user would."""
    print(f"$ flowopt {' '.join(Path(a).name if a.startswith('/') else a for a in arguments)}", flush=True)
    run([sys.executable, "-m", "flowopt.cli.main", *arguments], _EXAMPLES)


def run(command: list[str], folder: Path) -> None:
    if subprocess.run(command, cwd=folder).returncode:
        sys.exit(1)


def print_latency(module: str, artifact: Path) -> None:
    """Eager torch against the artifact, alternated, in processes of their own: in one, thread pools collide."""
    pairs = [(measured(module, "eager"), measured(module, str(artifact))) for _ in range(_ROUNDS)]
    ratios = sorted(eager / ours for eager, ours in pairs)
    eager, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"latency of the example inputs: eager torch {eager:.2f} ms, artifact {ours:.2f} ms: "
        f"{statistics.median(ratios):.2f} times as fast "
        f"(medians of {_ROUNDS} alternated runs; {ratios[0]:.2f} to {ratios[-1]:.2f})",
        flush=True,
    )


def measured(module: str, what: str) -> float:
    """Milliseconds per call, in a fresh process."""
    command = [sys.executable, __file__, "--measure", module, what]
    done = subprocess.run(command, cwd=_EXAMPLES, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout.split()[-1])


def measure(module: str, what: str) -> None:
    """The other side of ``measured``: print milliseconds per call of ``eager`` or of an artifact's folder."""
    import torch

    made = example(module)
    model: Callable[..., Any]
    if what == "eager":
        model = made["module"]
    else:
        from flowopt import Artifact

        model = Artifact.open(what).run
    args, kwargs = made.get("args", ()), made.get("kwargs", {})
    with torch.inference_mode():
        print(milliseconds(lambda: model(*args, **kwargs)))


def example(module: str) -> dict[str, Any]:
    """Model and example inputs. The ViT's weights are random here: latency does not depend on them."""
    if module == "minilm":
        import minilm

        return minilm.factory()
    import digits_vit

    images, _ = digits_vit.load_images()
    return {"module": digits_vit.DigitsViT().eval(), "args": (images[:3],)}


def milliseconds(call: Callable[[], object], seconds: float = 1.0) -> float:
    """Median over a second of calls, after a warm-up."""
    for _ in range(5):
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(*sys.argv[2:])
    else:
        main()
