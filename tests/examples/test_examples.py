"""Every example runs as its docstring says."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def run(*command: str, folder: Path) -> str:
    # The examples must not depend on the tests' own import path.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_optimize_a_model(tmp_path: Path) -> None:
    output = run(str(EXAMPLES / "optimize_a_model.py"), folder=tmp_path)
    assert output.startswith("verified: model.onnx, report.json, weights.")
    assert "fold-norm-affine: applied at 1 of 1 sites" in output
    assert not list(tmp_path.iterdir())


def test_load_what_you_have(tmp_path: Path) -> None:
    output = run(str(EXAMPLES / "load_what_you_have.py"), folder=tmp_path)
    assert output.count("equal to the model bit for bit") == 4
    assert output.count("  try   ") == 5


def test_run_without_torch(tmp_path: Path) -> None:
    output = run(str(EXAMPLES / "run_without_torch.py"), folder=tmp_path)
    assert output.startswith("verified: model.so, report.json, weights.")
    assert "without torch: features to label\n" in output
    assert "the numbers agree: " in output
    assert not list(tmp_path.iterdir())


def test_check_a_rewrite(tmp_path: Path) -> None:
    output = run(str(EXAMPLES / "check_a_rewrite.py"), folder=tmp_path)
    right, wrong = output.split("unshifted: ")
    assert "  equivalent in " in right
    assert "  different in " in wrong and "replayed from worst.npz: different" in wrong


def test_fold_the_norms(tmp_path: Path) -> None:
    output = run(str(EXAMPLES / "fold_the_norms.py"), folder=tmp_path)
    before, after = output.split("PostNorm")
    assert "pre-norm" in before and "3 norms; centred 3 layers and 1 stored tensor" in before
    assert "refused" not in before and after.count(": post-norm: ") == 2
    assert output.count("  equivalent") == 2


@pytest.mark.slow
def test_measure_a_model(tmp_path: Path) -> None:
    output = run(str(EXAMPLES / "measure_a_model.py"), folder=tmp_path)
    assert output.startswith("verified with canonicalize-aten,")
    assert "fold-constants:max_growth=65536" in output and "simplify-shapes" not in output
    assert "measured at linear" in output
    assert "times the time of eager" in output


def test_write_a_pass(tmp_path: Path) -> None:
    output = run(str(EXAMPLES / "write_a_pass.py"), folder=tmp_path)
    assert "recognize-silu: kept, applied at 1 of 2 sites" in output
    assert "no-sigmoid" in output


@pytest.mark.slow
def test_swap_the_norms(tmp_path: Path) -> None:
    output = run(str(EXAMPLES / "swap_the_norms.py"), "unified", "100", folder=tmp_path)
    assert output.startswith("approximate: 9 of 9 norms, swap-norm to unified\n")
    accuracy = {line.split()[0]: float(line.split("accuracy ")[1][:6]) for line in output.splitlines()[1:-1]}
    assert list(accuracy) == ["original", "uncalibrated", "swapped", "ridge", "distill"]
    assert accuracy["distill"] > 0.9 > accuracy["swapped"]
    assert output.endswith("normalizations in the ONNX file: none\n")


def pixels_of(picture: Path) -> bytes:
    """The scanlines of a picture of 10 x 8 digits, each with its filter in front."""
    written = picture.read_bytes()
    assert written.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = {}, 8
    while at < len(written):
        (length,) = struct.unpack_from(">I", written, at)
        kind, data = written[at + 4 : at + 8], written[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", written, at + 8 + length) == (zlib.crc32(kind + data),)
        chunks[kind], at = data, at + 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (400, 320, 8, 0, 0, 0, 0)
    return zlib.decompress(chunks[b"IDAT"])


def test_fold_a_sampler(tmp_path: Path) -> None:
    output = run(str(EXAMPLES / "fold_a_sampler.py"), "--quick", "--folder", "made", folder=tmp_path)
    header, sampler, images = output.splitlines()[1:4]
    assert header.split() == ["sampler", "evaluations", "form", "KB", "verdict", "error", "Frechet", "accuracy"]
    solver, steps, evaluations, _, _, verdict, error, distance, _ = sampler.split()
    assert (solver, steps, evaluations, verdict) == ("heun", "4", "8", "equivalent")
    # Of the order of float32's roundings: the loop written out by hand has the same times, signs and guidance.
    assert float(error) < 1e-5
    # Noise is more than 50 away; the network has learned something, which the sampler shows.
    floor = float(images.split()[1])
    assert 0 < floor < 1 < float(distance) < 30
    assert sorted(p.name for p in (tmp_path / "made").iterdir()) == ["heun-4", "heun-4.png", "images.png"]
    assert len(pixels_of(tmp_path / "made" / "heun-4.png")) == 320 * (1 + 400)
    scanlines = pixels_of(tmp_path / "made" / "images.png")
    assert len(scanlines) == 320 * (1 + 400)
    # A frame of one grey, then the first zero's first row of pixels, each four times as large.
    assert scanlines[:5] == b"\0" + 4 * b"\x40"
    assert scanlines[4 * 401 :][5:37] == bytes(v for v in (0, 0, 80, 207, 143, 16, 0, 0) for _ in range(4))


def test_the_example_of_a_test_passes(tmp_path: Path) -> None:
    output = run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLES / "test_my_model.py"), folder=tmp_path)
    assert "4 passed" in output


@pytest.mark.slow
def test_digits_vit_trains_and_saves(tmp_path: Path) -> None:
    output = run(str(EXAMPLES / "digits_vit.py"), folder=tmp_path)
    accuracy = float(output.split("held-out images: ")[1].split(",")[0])
    assert accuracy >= 0.95
    assert (tmp_path / "digits_vit.pt2").exists()


@pytest.mark.slow
def test_the_demo_prints_both_models(tmp_path: Path) -> None:
    output = run(str(EXAMPLES / "demo.py"), folder=tmp_path)
    assert output.count("verified: ") == 2
    assert "most frequent refusal: post-norm" in output
    assert output.count("times as fast") == 2


def test_every_example_is_run_here() -> None:
    text = Path(__file__).read_text()
    # minilm.py is a factory: the demo and the zoo run it; minilm_texts.py is data for it. digits_flow.py is the network
    # of fold_a_sampler.py, listops.py that of linearize_attention.py.
    parts = ("minilm.py", "minilm_texts.py", "digits_flow.py", "listops.py")
    missing = [p.name for p in EXAMPLES.glob("*.py") if p.name not in parts and f'"{p.name}"' not in text]
    assert not missing


@pytest.mark.slow
def test_linearize_attention(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    output = run(str(EXAMPLES / "linearize_attention.py"), "hedgehog", "0.25", "20", folder=tmp_path)
    assert "mean-of-values" in output and "\nhedgehog " in output and "\nsoftmax " in output
    assert (tmp_path / "attention_latency.png").stat().st_size > 5000
