"""Architectures that users bring, tiny and with random weights: what passes do at each is recorded in a golden file.

`ARCHITECTURES["opt"]()` builds one; `tests.zoo.models.ZOO` has the models that most tests use.
"""

from collections.abc import Callable

from tests.zoo.architectures.decoders import DECODERS
from tests.zoo.architectures.diffusion import DIFFUSION
from tests.zoo.architectures.encoders import ENCODERS
from tests.zoo.architectures.speech import SPEECH
from tests.zoo.architectures.vision import VISION
from tests.zoo.zoo_model import ZooModel

ARCHITECTURES: dict[str, Callable[[], ZooModel]] = {**DECODERS, **ENCODERS, **VISION, **SPEECH, **DIFFUSION}
