"""Which sites the exact preset finds in every architecture, applied and refused: the text of the golden file.

python -m tests.zoo.sites          writes tests/golden/zoo.md anew
"""

from pathlib import Path

from flowopt.pipeline.presets import DEFAULT_PRESET
from flowopt.pipeline.runner import run_passes
from flowopt.pipeline.text import parse_pipeline
from flowopt.program.capture import capture
from tests.zoo.architectures import ARCHITECTURES

PATH = Path(__file__).resolve().parents[1] / "golden" / "zoo.md"
_HEAD = """# What the exact preset does in each architecture

Tiny models with random weights. Passes without a site are left out.
"""


def sites_text(name: str) -> str:
    """One architecture: a line for each pass that has a site."""
    model = ARCHITECTURES[name]()
    program = capture(model.module, (), model.kwargs, dynamic=model.dynamic, dims=model.dims)
    run = run_passes(program, parse_pipeline(DEFAULT_PRESET))
    lines = [f"## {name}", "", "| pass | applied | refused |", "|---|---|---|"]
    for record in run.records:
        if record.anchors:
            codes = ", ".join(f"{code} {count}" for code, count in sorted(record.refusal_counts.items()))
            lines.append(f"| {record.name} | {len(record.applied)} | {codes or '-'} |")
    return "\n".join(lines) + "\n"


def recorded() -> dict[str, str]:
    """The sections of the golden file, by architecture."""
    parts = PATH.read_text(encoding="utf-8").split("\n## ")[1:] if PATH.exists() else []
    return {part.split("\n", 1)[0]: f"## {part.rstrip()}\n" for part in parts}


def main() -> None:
    """Write all sections."""
    PATH.write_text("\n".join([_HEAD, *(sites_text(name) for name in ARCHITECTURES)]), encoding="utf-8")


if __name__ == "__main__":
    main()
