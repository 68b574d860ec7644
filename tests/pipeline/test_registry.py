import subprocess
import sys
from pathlib import Path

import pytest

from flowopt.errors import UserError
from flowopt.pipeline.presets import DEFAULT_PRESET, PRESETS
from flowopt.pipeline.registry import entries, pass_class
from flowopt.rewrite import Exactness, RewritePass

ROOT = Path(__file__).resolve().parents[2]


def test_names_come_without_torch() -> None:
    code = (
        "import sys; from flowopt.pipeline.registry import entries; "
        "print(','.join(entries())); assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ",".join(entries())


def test_every_pass_file_is_an_entry() -> None:
    files = {p.stem.replace("_", "-") for p in (ROOT / "passes").glob("*/*.py") if not p.name.startswith("_")}
    assert set(entries()) == files


@pytest.mark.parametrize("name", entries())
def test_an_entry_says_what_the_class_says(name: str) -> None:
    entry, cls = entries()[name], pass_class(name)
    assert issubclass(cls, RewritePass)
    assert cls.pass_name() == entry.name == name
    assert cls.__module__ == entry.module
    assert cls.exactness is Exactness(entry.exactness)
    assert entry.summary == (cls.__doc__ or "").split("\n")[0]
    assert "Numerical effect" in entry.documentation
    assert "Refuses when" in entry.documentation


@pytest.mark.parametrize(("name", "hint"), [("fold-batchnorm", "fold-batch-norm"), ("zzz", "canonicalize-aten")])
def test_an_unknown_pass_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"there is no pass '{name}'") as caught:
        pass_class(name)
    assert hint in caught.value.hint


def test_presets_name_passes_that_exist() -> None:
    assert DEFAULT_PRESET in PRESETS
    assert {name for preset in PRESETS.values() for name in preset} <= set(entries())
