"""Nine models that stand for what users bring; see `tests.zoo.models`."""

import os

# Before any import of huggingface_hub, which reads it once: no zoo model may reach for a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
