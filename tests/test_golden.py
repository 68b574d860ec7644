"""Graphs before and after each pass, as people read them.

Where a text changed on purpose, the assertion's message is the new content of the file.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowopt.ir.text import graph_text
from flowopt.passes.cleanup.canonicalize_aten import CanonicalizeAten
from flowopt.passes.cleanup.eliminate_common_subexpressions import EliminateCommonSubexpressions
from flowopt.passes.cleanup.eliminate_key_bias import EliminateKeyBias
from flowopt.passes.cleanup.hoist_selections import HoistSelections
from flowopt.passes.cleanup.simplify_masks import SimplifyMasks
from flowopt.passes.fold.absorb_post_norm import AbsorbPostNorm
from flowopt.passes.fold.fold_batch_norm import FoldBatchNorm
from flowopt.passes.fold.fold_constants import FoldConstants
from flowopt.passes.fold.fold_linear_chain import FoldLinearChain
from flowopt.passes.fold.fold_norm_affine import FoldNormAffine
from flowopt.passes.fold.fold_parametrizations import FoldParametrizations
from flowopt.passes.fold.fold_scale import FoldScale
from flowopt.passes.fold.fold_ssm_kernel import FoldSsmKernel
from flowopt.passes.fold.fold_value_bias import FoldValueBias
from flowopt.passes.merge.merge_parallel_linears import MergeParallelLinears
from flowopt.passes.recognize.recognize_batch_channel_norm import RecognizeBatchChannelNorm
from flowopt.passes.recognize.recognize_rms_norm import RecognizeRmsNorm
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.rewrite import RewritePass
from tests.passes.fold.adapters import lora_linear
from tests.passes.programs import Written, decomposed
from tests.passes.recognize.batch_channel_norm import BatchChannelNorm

FOLDER = Path(__file__).resolve().parent / "golden"
LONGEST = 40


def conv_called_twice() -> tuple[Program, RewritePass[Any]]:
    module = Written(
        lambda m, x: m.norm(m.conv(x)) + m.conv(x.flip(0)), conv=nn.Conv1d(3, 4, 2, bias=False), norm=nn.BatchNorm1d(4)
    )
    return capture(module.eval(), (torch.zeros(2, 3, 5),)), FoldBatchNorm()


def norm_with_two_readers() -> tuple[Program, RewritePass[Any]]:
    def forward(m: Written, x: Tensor) -> Tensor:
        y = m.norm(x)
        added: Tensor = m.whole(y[:, 0]) + m.part(y.chunk(2, dim=-1)[1])[:, 0]
        return added

    module = Written(forward, norm=nn.LayerNorm(6), whole=nn.Linear(6, 4, bias=False), part=nn.Linear(3, 4))
    return capture(module.eval(), (torch.zeros(2, 5, 6),)), FoldNormAffine()


def written_rms_norm() -> tuple[Program, RewritePass[Any]]:
    def forward(m: Written, x: Tensor) -> Tensor:
        z = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        projected: Tensor = m.fc(m.gain * z.bfloat16())
        return projected

    module = Written(forward, gain=nn.Parameter(torch.ones(6)), fc=nn.Linear(6, 4, bias=False)).bfloat16()
    return capture(module.eval(), (torch.zeros(2, 6, dtype=torch.bfloat16),)), FoldNormAffine()


def frozen_norm_before_layers() -> tuple[Program, RewritePass[Any]]:
    def forward(m: Written, x: Tensor) -> Tensor:
        y = x * m.scale + m.shift
        gated: Tensor = m.gate(y).sigmoid() * m.up(y)
        return gated

    vectors = {"scale": torch.ones(6), "shift": torch.ones(6)}
    module = Written(forward, **vectors, gate=nn.Linear(6, 4, bias=False), up=nn.Linear(6, 4)).eval()
    return capture(module, (torch.zeros(2, 6),), dynamic={"x": {0: "batch"}}), FoldNormAffine()


def post_norm_block_with_batch_norm() -> tuple[Program, RewritePass[Any]]:
    def forward(m: Written, x: Tensor) -> Tensor:
        h = m.entry(x)
        h = m.norm(h + m.block(h)) * m.scale
        out: Tensor = m.head(h)
        return out

    layers = {name: nn.Linear(6, size) for name, size in {"entry": 6, "block": 6, "head": 3}.items()}
    module = Written(forward, **layers, norm=nn.BatchNorm1d(6), scale=torch.ones(6)).eval()
    module.norm.bias.data.fill_(1.0)
    program = capture(module, (torch.zeros(2, 6),), dynamic={"x": {0: "batch"}})
    return run_passes(program, [CanonicalizeAten()]).program, AbsorbPostNorm()


def decomposed_layers() -> tuple[Program, RewritePass[Any]]:
    module = nn.Sequential(nn.ConvTranspose1d(3, 4, 2, groups=1), nn.LayerNorm(6), nn.Linear(6, 2)).eval()
    return decomposed(module, torch.zeros(2, 3, 5)), CanonicalizeAten()


def normalised_weight() -> tuple[Program, RewritePass[Any]]:
    module = nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))
    return capture(module.eval(), (torch.zeros(2, 6),)), FoldConstants()


def repeated_work() -> tuple[Program, RewritePass[Any]]:
    module = Written(lambda m, x: (x.topk(2).values.exp() + 1.0) * (x.topk(2).values.exp() + 1.0) + x.topk(2).indices)
    return capture(module.eval(), (torch.zeros(2, 6),)), EliminateCommonSubexpressions()


def queries_keys_and_values() -> tuple[Program, RewritePass[Any]]:
    def forward(m: Written, x: Tensor) -> Tensor:
        attended: Tensor = m.q(x.tanh().sin()) + m.q(x) * m.k(x) * m.v(x)
        return attended

    layers = {"q": nn.Linear(6, 4), "k": nn.Linear(6, 4, bias=False), "v": nn.Linear(6, 1)}
    return capture(Written(forward, **layers).eval(), (torch.zeros(2, 6),)), MergeParallelLinears(min_gain=0.5)


def two_adapters() -> tuple[Program, RewritePass[Any]]:
    program = capture(lora_linear(ranks=(2, 1)).eval(), (torch.zeros(2, 6),))
    return program, FoldParametrizations()


def channel_norm() -> tuple[Program, RewritePass[Any]]:
    program = capture(BatchChannelNorm(4, 2).eval(), (torch.zeros(3, 4, 2, 2),), dynamic={"x": {0: "batch"}})
    return program, RecognizeBatchChannelNorm()


def scaled_scores() -> tuple[Program, RewritePass[Any]]:
    def forward(m: Written, x: Tensor) -> Tensor:
        q, k = m.qk(x).view(2, 3, 2, 4).unbind(2)
        scores: Tensor = (q @ k.transpose(-2, -1) / 2.0).softmax(-1)
        return scores

    return capture(Written(forward, qk=nn.Linear(6, 8)).eval(), (torch.zeros(2, 3, 6),)), FoldScale()


def layers_in_a_row() -> tuple[Program, RewritePass[Any]]:
    module = Written(lambda m, x: m.b(m.a(x).reshape(10, 8)), a=nn.Linear(6, 8), b=nn.Linear(8, 3, bias=False))
    return capture(module.eval(), (torch.zeros(2, 5, 6),)), FoldLinearChain()


def attention_with_biases() -> tuple[Program, RewritePass[Any]]:
    def forward(m: Written, x: Tensor) -> Tensor:
        v = m.value(x).view(2, 3, 2, 4).transpose(1, 2)
        y = nn.functional.scaled_dot_product_attention(v.sin(), v.cos(), m.value(x).view(2, 3, 2, 4).transpose(1, 2))
        projected: Tensor = m.out(y.transpose(1, 2).reshape(2, 3, 8))
        return projected

    module = Written(forward, value=nn.Linear(6, 8), out=nn.Linear(8, 5, bias=False))
    return capture(module.eval(), (torch.zeros(2, 3, 6),)), FoldValueBias()


def first_token_of_a_block() -> tuple[Program, RewritePass[Any]]:
    def forward(m: Written, x: Tensor) -> Tensor:
        q, k = (part(x).view(-1, 3, 2, 4).transpose(1, 2) for part in (m.query, m.key))
        attended = nn.functional.scaled_dot_product_attention(q, k, k).transpose(1, 2).reshape(-1, 3, 8)
        first: Tensor = (x + m.out(attended)).select(1, 0)
        return first

    layers = {name: nn.Linear(8, 8, bias=False) for name in ("query", "key", "out")}
    program = capture(Written(forward, **layers).eval(), (torch.zeros(2, 3, 8),), dynamic={"x": {0: "batch"}})
    return program, HoistSelections()


def rms_norm_with_gain() -> tuple[Program, RewritePass[Any]]:
    def forward(m: Written, x: Tensor) -> Tensor:
        added: Tensor = x + m.gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
        return added

    module = Written(forward, gain=nn.Parameter(torch.ones(6))).eval()
    return capture(module, (torch.zeros(2, 6),), dynamic={"x": {0: "batch"}}), RecognizeRmsNorm()


def rms_norm_between_casts() -> tuple[Program, RewritePass[Any]]:
    def forward(m: Written, x: Tensor) -> Tensor:
        z = x / torch.sqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        weighted: Tensor = m.gain * z.bfloat16()
        return weighted

    module = Written(forward, gain=nn.Parameter(torch.ones(6))).bfloat16()
    return capture(module.eval(), (torch.zeros(2, 6, dtype=torch.bfloat16),)), RecognizeRmsNorm()


def state_space_layer() -> tuple[Program, RewritePass[Any]]:
    def forward(m: Written, u: Tensor) -> Tensor:
        powers = torch.exp(torch.view_as_complex(m.poles).unsqueeze(-1) * torch.arange(5))
        spectrum = torch.fft.rfft(2 * torch.einsum("hn,hnl->hl", torch.view_as_complex(m.gains), powers).real, n=10)
        y = torch.fft.irfft(torch.fft.rfft(u, n=10) * spectrum, n=10)[..., :5]
        return y + u * m.skip.unsqueeze(-1)

    module = Written(forward, poles=torch.ones(3, 2, 2), gains=torch.ones(3, 2, 2), skip=torch.ones(3)).eval()
    return capture(module, (torch.zeros(2, 3, 5),)), FoldSsmKernel()


def grids_of_positions() -> tuple[Program, RewritePass[Any]]:
    def forward(m: Any, x: Tensor) -> Tensor:
        samples, places = torch.arange(x.shape[0])[:, None, None], torch.arange(x.shape[1])
        return ((places >= 0)[None, :, None] & x.bool()[samples, places[None, None, :]]).float()

    dims: dict[str, tuple[int, int | None]] = {"batch": (1, 8), "length": (1, 16)}
    free = {"x": {0: "batch", 1: "length"}}
    return capture(Written(forward).eval(), (torch.ones(2, 3),), dynamic=free, dims=dims), SimplifyMasks()


def written_attention_with_biases() -> tuple[Program, RewritePass[Any]]:
    def forward(m: Written, x: Tensor) -> Tensor:
        k = m.key(x).view(2, 3, 2, 4).transpose(1, 2)
        scores = k.sin() @ m.key(x).view(2, 3, 2, 4).permute(0, 2, 3, 1) / 2.0
        return (scores + m.mask).softmax(-1)

    module = Written(forward, key=nn.Linear(6, 8), mask=torch.zeros(3, 3))
    return capture(module.eval(), (torch.zeros(2, 3, 6),)), EliminateKeyBias()


GOLDEN: dict[str, Callable[[], tuple[Program, RewritePass[Any]]]] = {
    "fold_batch_norm": conv_called_twice,
    "absorb_post_norm": post_norm_block_with_batch_norm,
    "fold_norm_affine": norm_with_two_readers,
    "fold_norm_affine_frozen": frozen_norm_before_layers,
    "fold_norm_affine_written": written_rms_norm,
    "fold_parametrizations": two_adapters,
    "recognize_batch_channel_norm": channel_norm,
    "fold_linear_chain": layers_in_a_row,
    "fold_scale": scaled_scores,
    "fold_ssm_kernel": state_space_layer,
    "fold_value_bias": attention_with_biases,
    "recognize_rms_norm": rms_norm_with_gain,
    "recognize_rms_norm_between_casts": rms_norm_between_casts,
    "simplify_masks": grids_of_positions,
    "eliminate_key_bias": written_attention_with_biases,
    "canonicalize_aten": decomposed_layers,
    "fold_constants": normalised_weight,
    "eliminate_common_subexpressions": repeated_work,
    "hoist_selections": first_token_of_a_block,
    "merge_parallel_linears": queries_keys_and_values,
}


@pytest.mark.parametrize("name", GOLDEN)
def test_graph_is_as_recorded(name: str) -> None:
    program, rewrite_pass = GOLDEN[name]()
    run = run_passes(program, [rewrite_pass])
    text = f"before {rewrite_pass.text()}\n{graph_text(program.graph)}\nafter\n{graph_text(run.program.graph)}"
    path = FOLDER / f"{name}.txt"
    recorded = path.read_text(encoding="utf-8") if path.exists() else ""
    assert text == recorded, f"{path.name} should be, if this change is right:\n{text}"
    assert len(text.splitlines()) <= LONGEST


def test_every_golden_file_has_a_case() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(GOLDEN)
