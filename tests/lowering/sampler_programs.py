"""Small samplers, made by hand: three networks, and one whose steps compute nearly nothing."""

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from flowopt.ir.loop_spec import LoopSpec
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.program.sampler_program import SamplerProgram
from tests.zoo.randomise import randomise

Dynamic = Mapping[str, Mapping[int, str]]


def part(module: nn.Module, inputs: Mapping[str, Tensor], dynamic: Dynamic, seed: int) -> Program:
    """A module with random parameters, captured with inputs by name."""
    randomise(module, seed)
    return capture(module.eval(), kwargs=dict(inputs), dynamic=dynamic)


def random(*sizes: int, seed: int) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


class MlpPrologue(nn.Module):
    """Two states and a condition that is projected once; the noise itself is an input that the step does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.labels = nn.Embedding(10, 32)
        self.project = nn.Linear(32, 48)

    def forward(self, noise: Tensor, label: Tensor) -> dict[str, Tensor]:
        return {"x": noise * 1.5, "momentum": 0 * noise, "condition": self.project(self.labels(label))}


class MlpStep(nn.Module):
    """Time as a row, as a whole number and as a coefficient; an input that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 48)
        self.hidden = nn.Linear(48, 48)
        self.times = nn.Embedding(1000, 48)
        self.outer = nn.Linear(48, 8)

    def forward(
        self, x: Tensor, momentum: Tensor, condition: Tensor, row: Tensor, gain: Tensor, time: Tensor, spare: Tensor
    ) -> dict[str, Tensor]:
        hidden = (self.inner(x) + condition + row + self.times(time)).tanh()
        momentum = 0.5 * momentum + self.outer(self.hidden(hidden).tanh())
        return {"x.next": x + gain * momentum, "momentum.next": momentum}


class Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(-4.0, 4.0)


@functools.cache
def mlp_parts() -> tuple[Program, Program, Program]:
    batch = {0: "batch"}
    noise, condition = torch.randn(3, 8), torch.randn(3, 48)
    label, time, scalar = torch.tensor([1, 2, 3]), torch.tensor(5), torch.tensor(0.1)
    step = {"x": noise, "momentum": noise, "condition": condition, "row": condition[0], "gain": scalar}
    return (
        part(MlpPrologue(), {"noise": noise, "label": label}, {"noise": batch, "label": batch}, 1),
        part(
            MlpStep(), step | {"time": time, "spare": scalar}, dict.fromkeys(("x", "momentum", "condition"), batch), 2
        ),
        part(Clamp(), {"x": noise}, {"x": batch}, 3),
    )


def mlp(steps: int) -> SamplerProgram:
    """A network of layers with two states; a bare tensor comes out."""
    tables = {
        "row": random(steps, 48, seed=4),
        "gain": random(steps, seed=5) / steps,
        "time": torch.linspace(999, 0, steps).long(),
        "spare": torch.zeros(steps),
    }
    prologue, step, epilogue = mlp_parts()
    return SamplerProgram(prologue, step, LoopSpec(steps, ("x", "momentum"), tables), epilogue)


class ConvPrologue(nn.Module):
    """Returns a state under its input's name, computes one sequence, and leaves the other to the step."""

    def forward(self, x: Tensor, noises: Tensor) -> dict[str, Tensor]:
        return {"x": 3.0 * x, "drift": noises.mean((3, 4))}


class ConvStep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm([6, 6])
        self.first = nn.Conv2d(4, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, x: Tensor, noises: Tensor, drift: Tensor, shift: Tensor, gains: Tensor) -> dict[str, Tensor]:
        inner = nn.functional.gelu(self.first(self.norm(x)) + shift[:, None, None])
        fresh = noises + 0.1 * drift[:, :, None, None]
        return {"x.next": gains[0] * x + gains[1] * self.second(inner) + gains[2] * fresh}


class Named(nn.Module):
    """Returns its input's name too, which ONNX forbids, and a second output."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"x": x / 2, "bright": x.mean((1, 2, 3)) > 0}


@functools.cache
def conv_prologue(steps: int) -> Program:
    x, noises = torch.randn(3, 4, 6, 6), torch.randn(steps, 3, 4, 6, 6)
    dynamic = {"x": {0: "batch"}, "noises": {1: "batch"}}
    return part(ConvPrologue(), {"x": x, "noises": noises}, dynamic, 1)


@functools.cache
def conv_parts() -> tuple[Program, Program]:
    x, batch = torch.randn(3, 4, 6, 6), {0: "batch"}
    step = {"x": x, "noises": x, "drift": torch.randn(3, 4), "shift": torch.randn(16), "gains": torch.randn(3)}
    return (
        part(ConvStep(), step, dict.fromkeys(("x", "noises", "drift"), batch), 2),
        part(Named(), {"x": x}, {"x": batch}, 3),
    )


def conv(steps: int) -> SamplerProgram:
    """A convolutional network with fresh noise in every step, which is an input of the sampler."""
    step, epilogue = conv_parts()
    tables = {"shift": random(steps, 16, seed=4), "gains": random(steps, 3, seed=5) / steps + torch.tensor([1.0, 0, 0])}
    loop = LoopSpec(steps, ("x",), tables, ("noises", "drift"))
    return SamplerProgram(conv_prologue(steps), step, loop, epilogue)


class AttentionPrologue(nn.Module):
    """Keys and values of the condition, which all steps read."""

    def __init__(self) -> None:
        super().__init__()
        self.key = nn.Linear(24, 32)
        self.value = nn.Linear(24, 32)

    def forward(self, noise: Tensor, text: Tensor) -> dict[str, Tensor]:
        batch, words, _ = text.shape
        heads = batch, words, 4, 8
        return {
            "tokens": noise,
            "key": self.key(text).view(heads).transpose(1, 2),
            "value": self.value(text).view(heads).transpose(1, 2),
        }


class AttentionStep(nn.Module):
    """Attention among the tokens and to the condition, two free dimensions, a modulation per step."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32, elementwise_affine=False)
        self.project = nn.Linear(32, 96)
        self.query = nn.Linear(32, 32)
        self.out = nn.Linear(32, 32)

    def forward(self, tokens: Tensor, key: Tensor, value: Tensor, row: Tensor, gain: Tensor) -> dict[str, Tensor]:
        shift, scale, gate = row.chunk(3)
        inner = self.norm(tokens) * (1 + scale) + shift
        batch, length, _ = inner.shape
        q, k, v = self.project(inner).view(batch, length, 3, 4, 8).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        mixed = mixed.transpose(1, 2).reshape(batch, length, 32)
        query = self.query(inner).view(batch, length, 4, 8).transpose(1, 2)
        crossed = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        return {"tokens.next": tokens + gain * gate * self.out(mixed + crossed.reshape(batch, length, 32))}


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decode = nn.Linear(32, 16)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        return {"image": self.decode(tokens)}


@functools.cache
def attention_parts() -> tuple[Program, Program, Program]:
    tokens, text = torch.randn(3, 5, 32), torch.randn(3, 7, 24)
    both, words = {0: "batch", 1: "length"}, {0: "batch", 2: "words"}
    step = {"tokens": tokens, "key": torch.randn(3, 4, 7, 8), "value": torch.randn(3, 4, 7, 8)}
    step |= {"row": torch.randn(96), "gain": torch.tensor(0.3)}
    dynamic = {"tokens": both, "key": words, "value": words}
    return (
        part(
            AttentionPrologue(), {"noise": tokens, "text": text}, {"noise": both, "text": {0: "batch", 1: "words"}}, 1
        ),
        part(AttentionStep(), step, dynamic, 2),
        part(Scaled(), {"tokens": tokens}, {"tokens": both}, 3),
    )


def attention(steps: int) -> SamplerProgram:
    """A block of a transformer, with keys and values of a condition that are the same in all steps."""
    tables = {"row": random(steps, 96, seed=4), "gain": random(steps, seed=5) / steps}
    prologue, step, epilogue = attention_parts()
    return SamplerProgram(prologue, step, LoopSpec(steps, ("tokens",), tables), epilogue)


class OddStep(nn.Module):
    """Next values that are an input, another state, a stored tensor, and the same tensor twice; no table."""

    origin: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("origin", torch.arange(6.0))

    def forward(self, a: Tensor, b: Tensor, c: Tensor, d: Tensor, kept: Tensor) -> dict[str, Tensor]:
        total = a + c + 0.5 * kept
        return {"a.next": b, "b.next": total, "c.next": self.origin, "d.next": total, "kept.next": kept}


class OddPrologue(nn.Module):
    def forward(self, a: Tensor, kept: Tensor) -> dict[str, Tensor]:
        return {"b": a, "c": torch.zeros(6), "d": a}


class OddEpilogue(nn.Module):
    def forward(self, a: Tensor, d: Tensor) -> dict[str, Tensor]:
        return {"a": a, "d": d, "again": d}


@functools.cache
def odd_parts() -> tuple[Program, Program, Program]:
    a, c = torch.randn(3, 6), torch.randn(6)
    batch = {0: "batch"}
    step = {"a": a, "b": a, "c": c, "d": a, "kept": a}
    return (
        part(OddPrologue(), {"a": a, "kept": a}, {"a": batch, "kept": batch}, 1),
        part(OddStep(), step, dict.fromkeys(("a", "b", "d", "kept"), batch), 2),
        part(OddEpilogue(), {"a": a, "d": a}, {"a": batch, "d": batch}, 3),
    )


def odd(steps: int) -> SamplerProgram:
    """Nothing but names and constants to get wrong."""
    prologue, step, epilogue = odd_parts()
    return SamplerProgram(prologue, step, LoopSpec(steps, ("a", "b", "c", "d", "kept")), epilogue)


def inputs(program: SamplerProgram, sizes: Mapping[str, int], seed: int = 7) -> dict[str, Tensor]:
    """Values for the sampler's inputs, at sizes of its free dimensions."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for one in program.interface.inputs:
        shape = [size if isinstance(size, int) else sizes[size] for size in one.shape]
        if one.dtype.is_floating_point:
            found[one.name] = torch.randn(shape, generator=generator)
        else:
            found[one.name] = torch.randint(0, 10, shape, generator=generator)
    return found


SAMPLERS: dict[str, Callable[[int], SamplerProgram]] = {"mlp": mlp, "conv": conv, "attention": attention, "odd": odd}
