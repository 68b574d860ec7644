from pathlib import Path
from typing import Any

import pytest

from flowopt.formats.limits import DEFAULT_LIMITS, MEBIBYTE
from flowopt.runtime import trial
from flowopt.runtime.trial import require_harmless


def test_files_that_the_model_cannot_read_and_holes_lift_no_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(trial, "run_isolated", lambda *_, **options: given.append(options))
    weights = "weights.0123456789abcdef.data"
    (tmp_path / "model.onnx").write_bytes(weights.encode())
    for name in (weights, "weights.ffffffffffffffff.data", "other"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(1 << 40)
    require_harmless(tmp_path, DEFAULT_LIMITS)
    assert given[0]["extra_memory"] < MEBIBYTE
