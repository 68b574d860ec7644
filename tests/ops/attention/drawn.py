"""Stand-ins for softmax attention with drawn parameters, and what is done to each."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import flowopt
from flowopt.ops.attention import AttentionShape, LinearForm, linearization

HEADS, WIDTH, VALUES, CHUNK = 2, 4, 3, 8

Inputs = tuple[Tensor, Tensor, Tensor]


def stand_in(name: str, *, is_causal: bool, form: str = "chunked", seed: int = 0, **options: Any) -> LinearForm:
    """In float64 and eval mode; equal parameters for equal seeds, whatever the form."""
    generator = torch.Generator().manual_seed(seed)
    shape = AttentionShape(HEADS, WIDTH, VALUES, is_causal, scale=0.37)
    made = linearization(name)(shape, form=form, chunk=options.pop("chunk", CHUNK), **options).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return made


def inputs(length: int, batch: int = 2, seed: int = 1) -> Inputs:
    """Queries, keys and values in float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(width: int) -> Tensor:
        return torch.randn(batch, HEADS, length, width, generator=generator, dtype=torch.float64)

    return 2 * draw(WIDTH), 2 * draw(WIDTH), draw(VALUES)


def key_mask(length: int, *, before: int = 0, behind: int = 0) -> Tensor:
    """(1, 1, 1, length), with padding on both sides."""
    place = torch.arange(length)
    return ((place >= before) & (place < length - behind))[None, None, None]


def by_step(linear: LinearForm, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Token by token through ``step``."""
    state, made = linear.initial_state(query), []
    for token in zip(query.split(1, 2), key.split(1, 2), value.split(1, 2), strict=True):
        one, state = linear.step(*token, state)
        made.append(one)
    return torch.cat(made, 2)


def largest_leak(linear: LinearForm, length: int, at: int, visible: int) -> float:
    """Largest change of outputs before ``visible`` where the tokens from ``at`` on change."""
    given = inputs(length)
    other = tuple(
        torch.cat([a[:, :, :at], b[:, :, at:]], 2) for a, b in zip(given, inputs(length, seed=2), strict=True)
    )
    with torch.no_grad():
        change = linear(*given) - linear(*other)
    assert change[:, :, at:].abs().max() > 1e-3, "nothing changed at all"
    return float(change[:, :, :visible].abs().max())


def softmax_attention(linear: LinearForm, given: Inputs, mask: Tensor | None = None) -> Tensor:
    """What ``linear`` takes the place of."""
    length = given[0].shape[2]
    seen = torch.ones(length, length, dtype=torch.bool)
    seen = seen.tril() if linear.shape.is_causal else seen
    seen = seen if mask is None else seen & mask
    return nn.functional.scaled_dot_product_attention(*given, attn_mask=seen, scale=linear.shape.scale)


def lowered_error(linear: LinearForm, target: str, folder: Path) -> float:
    """Largest distance of an artifact from float64, at lengths other than the captured one, with padding behind."""

    def case(length: int, batch: int) -> tuple[Tensor, ...]:
        mask = key_mask(length, behind=length // 4).expand(batch, 1, 1, length)
        return *(x.float() for x in inputs(length, batch)), mask

    names = ("query", "key", "value", "key_mask")
    free = {name: {0: "batch", 3 if name == "key_mask" else 2: "length"} for name in names}
    single = linear.float()
    program = flowopt.capture(single, case(21, 2), dynamic=free, dims={"batch": (1, 8), "length": (1, 4096)})
    flowopt.optimize(program, target=target, folder=folder / "attention", verify="off")
    artifact = flowopt.Artifact.open(folder / "attention", trust="code")
    cases = [case(1, 1), case(CHUNK, 3), case(45, 2)]
    found = [artifact.run(*given) for given in cases]
    linear.double()
    largest = 0.0
    for given, y in zip(cases, found, strict=True):
        with torch.no_grad():
            expected = linear(*(x.double() if x.is_floating_point() else x for x in given))
        assert isinstance(y, Tensor) and y.isfinite().all()
        largest = max(largest, float((y - expected).abs().max()))
    return largest
