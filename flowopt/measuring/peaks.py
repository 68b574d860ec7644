"""What the machine gives: the model's own products alone, and a large copy.

Each product runs in torch and in ONNX Runtime, and the faster counts: a rate above its peak would say nothing.

    python -m flowopt.measuring.peaks PRODUCTS.json THREADS

prints the seconds of all products of one run, and the bytes per second of the copy.
"""

import dataclasses
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowopt.analysis.products import Product, Shaped
from flowopt.measuring.child import child_command, child_environment, reason_of
from flowopt.measuring.process import ContenderFailedError
from flowopt.report.bench import Peaks
from flowopt.sandbox.process import run_process

_BURST = 0.05
_COPIED = 1 << 28
_SECONDS = 900.0


def measured_peaks(products: Sequence[Product], threads: int) -> Peaks | None:
    """Peaks beside which a model's rates are read; None without products.

    Args:
        products: of one run.
        threads: as the contenders have.

    Raises:
        ContenderFailedError: torch does not run them.
    """
    if not products:
        return None
    with tempfile.TemporaryDirectory(prefix="flowopt-bench-") as folder:
        path = Path(folder) / "products.json"
        path.write_text(json.dumps([_told(p) for p in products]), encoding="utf-8")
        command = child_command("flowopt.measuring.peaks", [str(path), str(threads)])
        ended = run_process(command, b"", environment=child_environment(), folder=os.getcwd(), seconds=_SECONDS)
    if ended.status != 0:
        raise ContenderFailedError(reason_of(ended.status, ended.stderr, _SECONDS))
    seconds, copied = json.loads(ended.answer.decode().splitlines()[-1])
    flop = sum(p.flop * p.count for p in products)
    moved = sum(p.moved_bytes * p.count for p in products)
    return Peaks(flop, moved, flop / seconds, copied)


def main(path: str, threads: int) -> None:
    """Measure, and print the two figures as JSON."""
    import torch

    from flowopt.measuring.bursts import burst
    from flowopt.measuring.onnx_product import onnx_product

    torch.set_num_threads(threads)
    seconds = 0.0
    for told in json.loads(Path(path).read_text(encoding="utf-8")):
        packet: Any = torch.ops
        for part in told["operator"].split("."):
            packet = getattr(packet, part)
        arguments = [_made(a) for a in told["arguments"]]
        keywords = {name: _made(value) for name, value in told["keywords"]}
        with torch.inference_mode():
            found = [statistics.median(burst(lambda: packet(*arguments, **keywords), _BURST))]  # noqa: B023
        other = onnx_product(told["operator"], arguments, threads)
        if other is not None:
            found.append(statistics.median(burst(other, _BURST)))
        seconds += told["count"] * min(found)
    source = torch.ones(_COPIED, dtype=torch.uint8)
    target = torch.empty_like(source)
    copied = 2 * _COPIED / statistics.median(burst(lambda: target.copy_(source), 10 * _BURST))
    sys.stdout.write(json.dumps([seconds, copied]) + "\n")


def _told(product: Product) -> dict[str, Any]:
    return {
        "operator": product.operator,
        "arguments": [_tell(a) for a in product.arguments],
        "keywords": [(name, _tell(value)) for name, value in product.keywords],
        "count": product.count,
    }


def _tell(argument: Any) -> Any:
    if isinstance(argument, Shaped):
        return {"tensor": dataclasses.asdict(argument)}
    if isinstance(argument, tuple):
        return [_tell(one) for one in argument]
    return argument


def _made(argument: Any) -> Any:
    import torch

    if isinstance(argument, dict):
        dtype = getattr(torch, argument["tensor"]["dtype"])
        shape = argument["tensor"]["shape"]
        return torch.randn(shape).to(dtype) if dtype.is_floating_point else torch.ones(shape, dtype=dtype)
    if isinstance(argument, list):
        return [_made(one) for one in argument]
    return argument


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
