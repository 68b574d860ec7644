"""The zoo: nine models that stand for what users bring.

One is trained, eight have random weights; none needs a network. `ZOO["gpt2"]()` builds one, and
`model.module(**model.kwargs)` runs it.
"""

from collections.abc import Callable

from tests.zoo.image_models import digits_vit, mobilenet_v2, resnet, vit
from tests.zoo.randomise import randomise
from tests.zoo.text_models import bert, gpt2, llama, minilm, t5
from tests.zoo.zoo_model import ZooModel

__all__ = ["ZOO", "ZooModel", "randomise"]

ZOO: dict[str, Callable[[], ZooModel]] = {
    "minilm": minilm,
    "digits-vit": digits_vit,
    "gpt2": gpt2,
    "bert": bert,
    "vit": vit,
    "llama": llama,
    "t5": t5,
    "resnet": resnet,
    "mobilenet-v2": mobilenet_v2,
}
