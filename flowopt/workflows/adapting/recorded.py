"""What is measured of an artifact once it is there, added to its report."""

import json
from pathlib import Path

from flowopt.formats.whole_file import whole_file
from flowopt.report.adaptation import Adaptation
from flowopt.report.to_json import plain
from flowopt.runtime.layout import REPORT_FILE


def record_adaptation(folder: Path, adaptation: Adaptation) -> None:
    """Put an adaptation, its comparison included, in the place of the one that the artifact's report has.

    Args:
        folder: of the artifact; its model is what the report says it is.
        adaptation: with what was measured since.

    Raises:
        CannotWrite: the report.
    """
    path = folder / REPORT_FILE
    found = json.loads(path.read_text(encoding="utf-8"))
    found["adaptation"] = plain(adaptation)
    with whole_file(path, "the report") as file:
        file.write((json.dumps(found, indent=2, allow_nan=False) + "\n").encode())
