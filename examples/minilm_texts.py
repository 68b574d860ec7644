"""Text to measure and to adapt all-MiniLM-L6-v2 with: the docstrings of installed packages.

    flowopt adapt examples.minilm:factory --swap-norm unified --norms best:6 \\
        --data examples.minilm_texts:paragraphs --output last_hidden_state --metric examples.minilm_texts:cosine
"""

import ast
import importlib.util
import random
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from examples.minilm import model_folder

PACKAGES = ("numpy", "sklearn", "torch", "transformers")
COUNT = 20_000
TOKENS = 48
_SHORTEST, _LONGEST = 40, 400  # characters
_BEGINNING = 16  # tokens


@cache
def paragraphs(count: int = COUNT) -> dict[str, Tensor]:
    """Token ids and padding mask, int64 (count, 48), of paragraphs in an order that does not change."""
    from tokenizers import Tokenizer

    found = list(dict.fromkeys(_paragraphs()))
    random.Random(0).shuffle(found)
    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    tokenizer.enable_padding(length=TOKENS)
    tokenizer.enable_truncation(TOKENS)
    # Paragraphs that begin alike are one: what is held out is not to be found, all but its end, among the others.
    unlike = {tuple(e.ids[:_BEGINNING]): e for e in tokenizer.encode_batch(found[: 2 * count])}
    encodings = list(unlike.values())[:count]
    return {
        "input_ids": torch.tensor([e.ids for e in encodings]),
        "attention_mask": torch.tensor([e.attention_mask for e in encodings]),
    }


def embeddings(outputs: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """Sentence embeddings, (batch, 384): the mean of the tokens' vectors, of length 1."""
    weight = mask.unsqueeze(-1).to(torch.float32)
    mean = (outputs["last_hidden_state"] * weight).sum(1) / weight.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1)


def cosine(outputs: Mapping[str, Tensor], original: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
    """Mean cosine similarity of sentence embeddings with the original's: a metric for ``flowopt adapt``."""
    mask = batch["attention_mask"]
    return (embeddings(outputs, mask) * embeddings(original, mask)).sum(-1).mean()


def _paragraphs() -> Iterator[str]:
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in spec.submodule_search_locations or () if spec is not None else ():
            for path in sorted(Path(folder).rglob("*.py")):
                yield from _of_file(path)


def _of_file(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            continue
        for paragraph in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
            text = " ".join(paragraph.split())
            if len(text) >= _SHORTEST:
                yield text[:_LONGEST]
