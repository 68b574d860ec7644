"""The zoo's image models: two convolutional, one transformer, and one that is a bit of both."""

from torch import nn

from tests.zoo.inputs import images
from tests.zoo.quiet import quiet_transformers
from tests.zoo.randomise import randomise
from tests.zoo.zoo_model import ZooModel

LABELS = dict(enumerate("abcde"))


def digits_vit() -> ZooModel:
    """BatchNorm stem, LayerNorm blocks, packed qkv. The example's, but random: training it takes seconds."""
    from examples.digits_vit import DigitsViT

    return random_image_model("digits-vit", DigitsViT(), "images", channels=1, size=8, seed=5)


def vit() -> ZooModel:
    """Pre-norm, with separate query, key and value layers."""
    quiet_transformers()
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=80,
        image_size=24,
        patch_size=8,
        id2label=LABELS,
    )
    module = ViTForImageClassification(config)
    return random_image_model("vit", module, "pixel_values", channels=3, size=24, seed=6)


def resnet() -> ZooModel:
    """Bottleneck residual blocks; the shortcuts that change shape have a batch norm of their own."""
    quiet_transformers()
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=12, hidden_sizes=[16, 24, 40], depths=[1, 2, 1], id2label=LABELS)
    module = ResNetForImageClassification(config)
    return random_image_model("resnet", module, "pixel_values", channels=3, size=32, seed=7)


def mobilenet_v2() -> ZooModel:
    """Inverted residuals: depthwise convolutions, ReLU6, linear bottlenecks, TensorFlow's padding."""
    quiet_transformers()
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(depth_multiplier=0.35, image_size=32, id2label=LABELS)
    module = MobileNetV2ForImageClassification(config)
    return random_image_model("mobilenet-v2", module, "pixel_values", channels=3, size=32, seed=8)


def random_image_model(name: str, module: nn.Module, input_name: str, channels: int, size: int, seed: int) -> ZooModel:
    randomise(module, seed)
    return ZooModel(
        name=name,
        module=module.eval(),
        kwargs={input_name: images(7, channels, size, seed)},
        dynamic={input_name: {0: "batch"}},
        dims={"batch": (1, 64)},
    )
