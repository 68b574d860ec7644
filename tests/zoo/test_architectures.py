"""What passes find in the architectures that users bring is what was found before."""

import pytest

from tests.zoo.architectures import ARCHITECTURES
from tests.zoo.sites import recorded, sites_text

# One of each kind in every run: pre-norm, parallel, post-norm, convolutional, behind convolutions, a denoiser.
QUICK = ("opt", "gpt-neox", "roberta", "convnext", "whisper-encoder", "dit")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]
)
def test_sites_are_those_on_record(name: str) -> None:
    found = sites_text(name)
    assert found == recorded().get(name, ""), f"python -m tests.zoo.sites records this, if it is right:\n{found}"


def test_every_section_is_of_an_architecture() -> None:
    assert set(recorded()) == set(ARCHITECTURES)
