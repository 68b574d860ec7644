"""``flowopt sampler``: what it writes, what it shows, and its exit codes."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import diffusers
import pytest
import torch

import flowopt as package
from flowopt.cli.sampler_options import FormName
from flowopt.ir.loop_spec import FORMS
from flowopt.report.verdict import Finding, Outcome, Verdict
from flowopt.sampling import Epilogue, probe_scheduler
from flowopt.sampling.plain_loop import PlainLoop
from flowopt.sampling.roles import roles_of
from tests.cli import samplers
from tests.cli.command import Ran, flowopt
from tests.sampling.networks import CHANNELS, SIZE, relative

NATIVE = ("--solver", "heun", "--steps", "3", "--schedule", "shift:3", "--convention", "diffusers-flow")
GUIDED = (*NATIVE, "--guidance", "cfg:3", "--unconditional", "label=9")
QUICK = ("--passes", "fold-constants")
LOOK = ("--dry-run", "--verify", "off", *QUICK)
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the target's device takes part")


def model(name: str) -> str:
    return f"tests.cli.samplers:{name}"


def result(ran: Ran) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ran.out)
    return found


def inputs_of(found: dict[str, Any]) -> list[str]:
    return [one["name"] for one in found["interface"]["inputs"]]


def test_options_offer_the_forms_that_the_library_has() -> None:
    assert get_args(FormName) == FORMS


def test_writes_a_sampler_and_says_how_far_it_is_from_the_plain_loop_and_how_to_run_it() -> None:
    ran = flowopt("sampler", model("labelled"), *GUIDED, *QUICK, "--json", "result.json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.first == f"verified: heun, 5 evaluations of {model('labelled')} in one file for cpu"
    lines = ran.out.splitlines()
    assert lines[1] == "loop: heun, 5 evaluations of the network, 2 state tensors, form scan"
    assert re.fullmatch(r"      what depends .*: [\d,]+ bytes of tables, in place of [\d,]+ bytes of weights", lines[2])
    assert lines[3] == "network: sample x, time t, condition label; prediction output"
    assert lines[4].startswith("step: 0 rewrites applied to its step; ")
    heads, first = next(pair for pair in zip(lines, lines[1:], strict=False) if pair[0].startswith("case "))
    assert heads.split() == "case fold step own sample own allowed growth".split()
    assert re.fullmatch(r"traced\[batch=3\] +(\d\.\de-\d\d +){6}\d[\d.]*", first)
    assert "note: the step from t=0.6 to 0 is an Euler step" in ran.out
    assert ran.last.startswith("artifact: Labelled.flowopt (model.onnx, report.json")
    assert (
        max(len(line) for line in lines if not line.startswith(("note", "run it", "artifact", "errors", "fold:")))
        <= 100
    )
    # The line that says how to run it runs.
    call = next(line for line in lines if line.startswith("run it: ")).removeprefix("run it: ")
    assert call == "flowopt.Artifact.open('Labelled.flowopt').run(noise=noise, label=label)"
    noise, label = torch.randn(2, CHANNELS, SIZE, SIZE), torch.tensor([1, 2])
    assert eval(call, {"flowopt": package, "noise": noise, "label": label}).shape == noise.shape
    found = json.loads(Path("result.json").read_text())
    assert found["verdict"]["outcome"] == "equivalent" and found["exit_code"] == 0
    assert found["artifact"] == "Labelled.flowopt"
    assert (found["loop"]["sampler"], found["loop"]["evaluations"], found["loop"]["form"]) == ("heun", 5, "scan")
    assert [case["case"] for case in found["loop"]["cases"]] == ["traced[batch=3]", "smallest[batch=1]"]
    assert found["pipeline"] == "canonicalize-aten,fold-constants"


def test_a_scheduler_of_diffusers_is_folded_as_its_own_loop_steps() -> None:
    scheduler = diffusers.DDIMScheduler(clip_sample=True)
    scheduler.save_pretrained("pipe/scheduler")
    options = (
        "--steps",
        "3",
        "--set",
        "clip_sample=false",
        "--set",
        "eta=1",
        "--output-scale",
        "0.5",
        "--clamp",
        "-2..2",
    )
    ran = flowopt("sampler", model("timed"), "--scheduler", "pipe", *options, "-o", "out", "--verify", "final", *QUICK)
    assert ran.code == 0, ran.err
    assert ran.first.startswith("verified: DDIMScheduler, 3 evaluations of ")
    assert "loop: DDIMScheduler, 3 evaluations of the network, 1 state tensor, 2 draws of noise" in ran.out
    assert "draws   float32  [2, batch, 4, 6, 6]  unit normal: what the sampler draws on its way" in ran.out
    made = samplers.timed()
    program = package.capture(made["module"], (), made["kwargs"], dynamic=made["dynamic"], dims=made["dims"])
    own = diffusers.DDIMScheduler.from_config(scheduler.config, clip_sample=False)
    spec = probe_scheduler(own, 3, eta=1.0)
    plain = PlainLoop(program, roles_of(program, 1), spec, None, Epilogue(0.5, clamp=(-2.0, 2.0)))
    inputs = {"noise": torch.randn(2, CHANNELS, SIZE, SIZE), "draws": torch.randn(2, 2, CHANNELS, SIZE, SIZE)}
    found = package.Artifact.open("out").run(**inputs)
    assert isinstance(found, torch.Tensor)
    assert relative(found, plain.run(inputs)) < 1e-5


@pytest.mark.slow
def test_no_verification_is_said_last() -> None:
    ran = flowopt("sampler", model("timed"), "--solver", "euler", "--steps", "2", "--convention", "sit", *LOOK[1:])
    assert (ran.code, ran.err) == (0, "")
    assert ran.first.startswith("not-verified: euler, 1 evaluation of ")
    assert ran.last.startswith("not-verified: ")
    assert "note: sit counts points of the grid: 2 points make 1 steps" in ran.out


def test_the_target_torch_writes_an_archive_and_the_trust_that_it_needs() -> None:
    euler = ("--solver", "euler", "--steps", "2", "--convention", "flowturbo")
    ran = flowopt("sampler", model("timed"), *euler, "--target", "torch", "-o", "out", *LOOK[1:])
    assert ran.code == 0
    assert Path("out/model.pt2").is_file()
    assert "flowopt.Artifact.open('out', trust='code').run(noise=noise)" in ran.out


def test_json_on_stdout_is_alone_there_and_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    ran = flowopt("sampler", model("labelled"), *GUIDED, *LOOK, "--json", "-")
    found = result(ran)
    assert (found["outcome"], found["artifact"], found["exit_code"]) == ("dry-run", None, 0)
    assert found["loop"]["cases"] == []
    assert inputs_of(found) == ["noise", "label"]
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_so_first() -> None:
    ran = flowopt("sampler", model("timed"), *NATIVE, "--dry-run", *QUICK)
    assert ran.code == 0
    assert ran.first.startswith("dry-run, nothing written, program equivalent: heun, 5 evaluations of ")


def test_guidance_gives_the_sampler_of_an_archive_the_inputs_that_it_needs() -> None:
    made = samplers.labelled()
    batch = torch.export.Dim("batch", min=1, max=16)
    free = {name: {0: batch} for name in made["kwargs"]}
    exported = torch.export.export(made["module"], (), made["kwargs"], dynamic_shapes=free, strict=False)
    torch.export.save(exported, "network.pt2")
    euler = ("--solver", "euler", "--steps", "2", "--convention", "diffusers-flow", "--guidance", "cfg:input")
    found = result(flowopt("sampler", "network.pt2", *euler, *LOOK, "--json", "-"))
    assert inputs_of(found) == ["noise", "label", "unconditional_label", "guidance_scale"]


def reaching(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What reaches the library."""
    seen: list[Any] = []

    def note(_: object, spec: object, **options: Any) -> None:
        seen.append((spec, options))
        raise KeyboardInterrupt

    monkeypatch.setattr("flowopt.workflows.sampler.optimize_sampler", note)
    return seen


def test_options_of_guidance_and_output_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = reaching(monkeypatch)
    per_step = ("--guidance", "cfg:1,4,4,4,1")
    assert flowopt("sampler", model("labelled"), *NATIVE, *per_step).code == 130
    assert seen.pop()[1]["guidance"].scale == (1.0, 4.0, 4.0, 4.0, 1.0)
    options = ("--guidance", "cfg-original:2", "--unconditional", "label=9", "--guidance-channels", "3")
    more = ("--guidance-order", "conditional-first", "--output-shift", "-0.5", "--clamp", "-1..1", "--form", "loop")
    assert flowopt("sampler", model("labelled"), *NATIVE, *options, *more, "--seed", "7").code == 130
    _, given = seen[0]
    guidance = given["guidance"]
    assert (guidance.scale, guidance.difference) == (2.0, "from-conditional")
    assert (dict(guidance.unconditional), guidance.channels) == ({"label": 9.0}, 3)
    assert guidance.order == "conditional-first"
    assert given["output"] == Epilogue(1.0, -0.5, (-1.0, 1.0))
    assert (given["form"], given["seed"], given["sample"], given["times"]) == ("loop", 7, "x", ("t",))


@pytest.mark.parametrize(
    ("settings", "time"),
    [((), 1000.0), (("--set", "time_scale=1"), 1.0), (("--set", "first_time=0.5"), 500.0)],
)
def test_settings_change_the_convention(
    monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...], time: float
) -> None:
    seen = reaching(monkeypatch)
    euler = ("--solver", "euler", "--steps", "3", "--convention", "diffusers-flow")
    assert flowopt("sampler", model("timed"), *euler, *settings).code == 130
    assert seen[0][0].times[0] == (time,)


def test_a_list_of_sigmas_sets_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = reaching(monkeypatch)
    diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0).save_pretrained("s")
    assert flowopt("sampler", model("timed"), "--scheduler", "s", "--set", "sigmas=1,0.5,0.25").code == 130
    assert seen[0][0].times == ((1000.0,), (500.0,), (250.0,))


@pytest.mark.parametrize(
    ("network", "options", "roles"),
    [
        ("guessed", (), ("a", ("b",), "output")),
        ("guessed", ("--sample", "c", "--time", "b"), ("c", ("b",), "output")),
        ("pair", ("--prediction", "output.1"), None),
        ("pair", ("--prediction", "output.0"), ("x", ("t",), "output.0")),
        ("averaged", ("--solver", "meanflow", "--convention", "meanflow"), ("x", ("t", "h"), "output")),
    ],
)
def test_roles_come_by_name_by_the_order_of_the_convention_or_as_said(
    monkeypatch: pytest.MonkeyPatch, network: str, options: tuple[str, ...], roles: tuple[str, ...] | None
) -> None:
    seen = reaching(monkeypatch)
    euler = ("--solver", "euler", "--steps", "2", "--convention", "diffusers-flow")
    ran = flowopt("sampler", model(network), *euler, *options)
    if roles is None:
        assert ran.code == 2 and "is ['batch', 4] and the sample 'x'" in ran.err
        return
    assert ran.code == 130, ran.err
    given = seen[0][1]
    assert (given["sample"], given["times"], given["prediction"]) == roles


@without_gpu
@pytest.mark.slow
def test_cuda_without_a_gpu_is_said_last_and_exit_3_where_the_device_is_required() -> None:
    euler = ("--solver", "euler", "--steps", "1", "--convention", "flowturbo", "--target", "cuda", "--require-device")
    ran = flowopt("sampler", model("timed"), *euler, *QUICK)
    assert ran.code == 3
    assert ran.last.startswith("verified-on-cpu: ")


def test_a_file_that_differs_is_exit_1_and_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Verdict(Outcome.DIFFERENT, (Finding("loop", "sample", "traced", "1e-3 off, relative; allowed are 1e-6"),))
    check: Callable[..., Any] = lambda *_, **__: (found, ())  # noqa: E731  # a stand-in
    monkeypatch.setattr("flowopt.workflows.lower_sampler.check_loop", check)
    euler = ("--solver", "euler", "--steps", "1", "--convention", "flowturbo", "--target", "torch")
    ran = flowopt("sampler", model("timed"), *euler, *QUICK)
    assert ran.code == 1
    first, second, *_ = ran.out.splitlines()
    assert first.startswith("different, nothing written: euler, 1 evaluation of ")
    assert second == "  loop gate, sample: 1e-3 off, relative; allowed are 1e-6 (case traced)"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_exit_73_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = reaching(monkeypatch)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("do not delete")
    assert flowopt("sampler", model("timed"), *NATIVE, "-o", "out").code == 73
    assert not seen
