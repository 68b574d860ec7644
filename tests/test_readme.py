"""The README's commands run as they stand, and what it says of the command line is so."""

import re
import shlex
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import nn

from flowopt.cli.main import main
from flowopt.ir.loop_spec import FORMS
from flowopt.sampling.conventions import CONVENTIONS
from flowopt.sampling.solvers.registry import SOLVERS

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()

MY_MODEL = """
import torch
from torch import nn

def factory():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LayerNorm(3600), nn.Linear(3600, 2))
    for tensor in (*model.parameters(), model[1].running_mean):
        tensor.data.normal_(0, 0.2)
    return {
        "module": model.eval(),
        "args": (torch.randn(2, 3, 32, 32),),
        "dynamic": {"input": {0: "batch"}},
        "dims": {"batch": (1, 64)},
    }
"""


MY_NETWORK = """
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.label, self.time = nn.Embedding(1001, 8), nn.Linear(1, 8)
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x, t, label):
        return self.last(torch.tanh(self.first(x) + self.label(label) + self.time(t[:, None] / 1000)))

def factory():
    torch.manual_seed(0)
    inputs = {"x": torch.randn(2, 6), "t": torch.full((2,), 500.0), "label": torch.tensor([1, 2])}
    free = {name: {0: "batch"} for name in inputs}
    return {"module": Network().eval(), "kwargs": inputs, "dynamic": free, "dims": {"batch": (1, 64)}}
"""


def commands(title: str) -> list[str]:
    """Lines of a section that a user pastes, without their remarks."""
    section = README.split(f"## {title}")[1].split("\n## ")[0]
    lines = [line.split("#")[0].strip() for line in section.splitlines()]
    return [line for line in lines if line.startswith("flowopt ")]


def test_the_commands_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_model.py").write_text(MY_MODEL)
    monkeypatch.chdir(tmp_path)
    found = commands("Use it")
    assert len(found) >= 4
    for command in found:
        assert main(shlex.split(command)[1:]) == 0, (command, capsys.readouterr())
    assert (tmp_path / "out" / "model.onnx").exists()


class Encoder(nn.Module):
    """Takes what MiniLM takes."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm, self.dense = nn.Embedding(11, 8), nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.dense(self.norm(self.words(input_ids)))
        return hidden * attention_mask[..., None]


def test_the_lines_for_tvm_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Encoder().eval()
    ids, mask = torch.randint(0, 11, (2, 5)), torch.ones(2, 5, dtype=torch.int64)
    monkeypatch.chdir(tmp_path)
    torch.export.save(torch.export.export(model, (ids, mask)), "minilm.pt2")
    lines = [line for line in commands("TVM") if " bench " not in line]
    assert len(lines) == 2
    for command in lines:
        assert main(shlex.split(command)[1:]) == 0, command
    names: dict[str, Any] = {"ids": ids.numpy(), "mask": mask.numpy()}
    exec(README.split("## TVM")[1].split("```python\n")[1].split("```")[0], names)
    (found,) = names["outputs"].values()
    with torch.no_grad():
        # Sums of 8 products in another order.
        assert torch.allclose(torch.from_numpy(found), model(ids, mask), atol=1e-6)


MY_CLASSIFIER = """
import torch
from torch import nn

class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(6, 16), nn.LayerNorm(16)
        self.middle, self.last_norm, self.head = nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, images):
        hidden = self.first(images)
        hidden = hidden + torch.tanh(self.middle(self.norm(hidden)))
        return self.head(self.last_norm(hidden))

def model():
    torch.manual_seed(0)
    return Classifier().eval()
"""


def test_the_commands_for_norms_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {}
    exec(MY_CLASSIFIER, names)
    model, images = names["model"](), torch.randn(128, 6, generator=torch.Generator().manual_seed(1))
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (images[:3],), dynamic_shapes={"images": {0: batch}}, strict=False)
    torch.export.save(exported, tmp_path / "vit.pt2")
    np.savez(tmp_path / "images.npz", images=images.numpy(), labels=model(images).argmax(-1).numpy())
    monkeypatch.chdir(tmp_path)
    found = commands("Swap norms")
    assert len(found) == 2 and found[0].endswith("--dry-run")
    for command in found:
        # A model this small needs no 500 steps, and nobody reads its latency.
        quick = [] if command.endswith("--dry-run") else ["--steps", "30", "--no-timing", "--max-drop", "0.5"]
        assert main([*shlex.split(command)[1:], *quick]) == 0, (command, capsys.readouterr())
    assert (tmp_path / "out" / "model.onnx").exists()


def test_the_commands_for_samplers_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_network.py").write_text(MY_NETWORK)
    (tmp_path / "sampler.toml").write_text(block("toml"))
    monkeypatch.chdir(tmp_path)
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained("pipeline/scheduler")
    found = commands("Samplers")
    assert len(found) == 3
    for command, quicker in zip(found, ([], ["--dry-run"], ["--dry-run"]), strict=True):
        assert main([*shlex.split(command)[1:], *quicker]) == 0, (command, capsys.readouterr())
    assert (tmp_path / "sampler" / "model.onnx").exists()


def test_the_lines_of_python_for_samplers_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
    ).eval()
    given = {"encoder_hidden_states": torch.randn(2, 5, 16), "pooled_projections": torch.randn(2, 16)}
    noise = torch.randn(2, 4, 8, 8)
    names: dict[str, Any] = {
        "transformer": transformer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        "inputs": {"hidden_states": noise, "timestep": torch.full((2,), 500.0), **given},
        "noise": noise,
        "conditions": given | {f"unconditional_{name}": torch.zeros_like(value) for name, value in given.items()},
    }
    # The same lines with fewer steps.
    exec(block("python").replace("28", "2"), names)
    assert names["latents"].shape == noise.shape


def test_the_tables_of_samplers_name_all_there_are() -> None:
    section = README.split("## Samplers")[1].split("\n## ")[0]
    for option, known in (("--solver", SOLVERS), ("--convention", CONVENTIONS), ("--form", FORMS)):
        table = section.split(f"| `{option}` |")[1].split("\n\n")[0]
        firsts = [row.split("|")[1] for row in table.splitlines()[2:]]
        named = {word.split("[")[0] for first in firsts for word in re.findall(r"`([^`]+)`", first)}
        assert named == set(known), option


def block(language: str) -> str:
    """The block of that language in the section "Samplers"."""
    return README.split("## Samplers")[1].split(f"```{language}\n")[1].split("```")[0]


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (Path(__file__).resolve().parents[1] / "Makefile").read_text()
    made = README.split("## Try it")[1].split("```")[1]
    wanted = [line.split()[1] for line in made.strip().splitlines()]
    assert wanted == ["demo", "test"]
    assert all(f"\n{target}:" in makefile for target in wanted)
