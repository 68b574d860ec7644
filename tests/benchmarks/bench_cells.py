"""Which cells the bench has, and what is kept of them."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flowopt.measuring.statistics import geometric_mean
from flowopt.report.bench import BenchCell, BenchReport
from flowopt.report.bench_markdown import bench_markdown
from flowopt.report.to_json import plain, to_json
from tests.benchmarks.commit import ROOT
from tests.benchmarks.models import FACTORIES

FOLDER = ROOT / ".bench"
_TEXT = ("minilm", "gpt2", "llama")
_SHORT_IMAGES = ("vit-short", "dit-short")
_SHORT_SEQUENCE = 32


def sizes_of(model: str) -> tuple[dict[str, int], ...]:
    """The cells of one model: batches of 1 and 8, of text at two lengths."""
    if model in _TEXT:
        return tuple({"batch": batch, "sequence": length} for length in (_SHORT_SEQUENCE, 128) for batch in (1, 8))
    return ({"batch": 1}, {"batch": 8})


def label(model: str, sizes: Mapping[str, int]) -> str:
    """As ``BenchCell.label``."""
    return BenchCell(model, sizes, "", {}, {}, {}).label


ALL_LABELS = tuple(label(model, sizes) for model in FACTORIES for sizes in sizes_of(model))
# Transformers at 17 to 64 tokens.
SHORT_LABELS = tuple(
    label(model, sizes)
    for model in (*_TEXT, *_SHORT_IMAGES)
    for sizes in sizes_of(model)
    if sizes.get("sequence", _SHORT_SEQUENCE) == _SHORT_SEQUENCE
)
TITLES = {model: "Text models" if model in _TEXT else "Image models" for model in FACTORIES}


@dataclass(slots=True)
class BenchFile:
    """One bench: its figures, the commit that they are of, and why a cell has none."""

    commit: str
    report: BenchReport
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether every cell was tried."""
        return {*(cell.label for cell in self.report.cells), *self.failed} >= set(ALL_LABELS)

    def ratio_of_short(self) -> float | None:
        """Geometric mean of the ratios to the plain export over the short transformer cells; None: one is missing."""
        found = {cell.label: cell.ratios[cell.plain].value for cell in self.report.cells if cell.plain is not None}
        return geometric_mean([found[n] for n in SHORT_LABELS]) if all(n in found for n in SHORT_LABELS) else None

    def markdown(self) -> str:
        """The tables, and what they come to."""
        lines = [bench_markdown(self.report, TITLES)]
        mean = self.ratio_of_short()
        if mean is not None:
            lines += [
                f"Our time over that of the plain export, geometric mean over the {len(SHORT_LABELS)} cells of "
                f"transformers at 17 to 64 tokens: {mean:.3f}.\n"
            ]
        if self.failed:
            lines += ["Not measured:\n", "\n".join(f"- {name}: {why}" for name, why in self.failed.items()) + "\n"]
        return "\n".join(lines)

    def save(self, folder: Path = FOLDER) -> None:
        """Write ``bench.json`` and ``bench.md``, each as a whole."""
        folder.mkdir(exist_ok=True)
        told = {"commit": self.commit, "report": plain(self.report), "failed": self.failed}
        for name, text in (("bench.json", to_json(told)), ("bench.md", self.markdown())):
            aside = folder / f".{name}.tmp"
            aside.write_text(text, encoding="utf-8")
            os.replace(aside, folder / name)

    @staticmethod
    def load(folder: Path = FOLDER) -> "BenchFile | None":
        """What ``save`` wrote last; None: nothing yet."""
        path = folder / "bench.json"
        if not path.exists():
            return None
        told = json.loads(path.read_text(encoding="utf-8"))
        return BenchFile(told["commit"], BenchReport.of(told["report"]), dict(told["failed"]))
