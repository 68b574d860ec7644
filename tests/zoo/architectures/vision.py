"""Vision: transformers, convolutional networks, and both halves of CLIP."""

import functools
import zlib
from collections.abc import Callable
from typing import Any

from tests.zoo.architectures.decoders import of_transformers
from tests.zoo.image_models import LABELS, mobilenet_v2, random_image_model, resnet, vit
from tests.zoo.quiet import quiet_transformers
from tests.zoo.text_models import VOCABULARY
from tests.zoo.zoo_model import ZooModel

_SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "image_size": 24,
    "patch_size": 8,
}


def _of_images(name: str, stem: str, head: str, size: int, config: dict[str, Any]) -> ZooModel:
    quiet_transformers()
    import transformers

    module = getattr(transformers, f"{stem}{head}")(getattr(transformers, f"{stem}Config")(**config))
    seed = zlib.crc32(name.encode()) % 1000
    return random_image_model(name, module, "pixel_values", channels=3, size=size, seed=seed)


def _image(
    name: str, stem: str, size: int = 24, head: str = "ForImageClassification", **config: Any
) -> Callable[[], ZooModel]:
    labels = {"id2label": LABELS} if head == "ForImageClassification" else {}
    return functools.partial(_of_images, name, stem, head, size, config | labels)


_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}

VISION: dict[str, Callable[[], ZooModel]] = {
    "vit": vit,
    "deit": _image("deit", "DeiT", **_SIZES),
    "swin": _image(
        "swin", "Swin", 32, image_size=32, patch_size=4, embed_dim=12, depths=[2, 2], num_heads=[2, 3], window_size=4
    ),
    "beit": _image("beit", "Beit", **_SIZES),
    "convnext": _image("convnext", "ConvNext", 32, hidden_sizes=[12, 16, 24, 40], depths=[1, 1, 2, 1]),
    "resnet": resnet,
    "regnet": _image(
        "regnet", "RegNet", 32, embedding_size=12, hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 2, 1], groups_width=8
    ),
    "mobilenet-v2": mobilenet_v2,
    "clip-text": functools.partial(
        of_transformers,
        "clip-text",
        "CLIPText",
        "Model",
        _TEXT | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    ),
    "clip-vision": _image("clip-vision", "CLIPVision", head="Model", **_SIZES),
    "siglip-vision": _image("siglip-vision", "SiglipVision", head="Model", **_SIZES),
}
