"""What is wrong with a command line of ``flowopt sampler``: one error in one screen, in options, before the work."""

import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest

from tests.cli.command import flowopt, refused

NATIVE = ("--solver", "euler", "--steps", "4", "--convention", "diffusers-flow")


def model(name: str) -> str:
    return f"tests.cli.samplers:{name}"


@pytest.mark.parametrize(
    ("options", "complaint", "hint"),
    [
        ([], "which sampler?", "--solver heun --steps 20 --convention diffusers-flow"),
        (["--solver", "heun", "--steps", "4"], "whose network is it?", "--convention rectified-flow, instaflow"),
        (["--solver", "huen", "--steps", "4", "--convention", "sit"], "no solver 'huen'", "did you mean heun"),
        (["--solver", "heun", "--steps", "4", "--convention", "sitt"], "no convention 'sitt'", "did you mean sit"),
        (["--solver", "heun", "--convention", "diffusers-flow"], "how many steps?", "--steps 20, or list the times"),
        (["--solver", "heun", "--convention", "sit", "--steps", "0"], "--steps 0 makes no sample", "--steps 2 or more"),
        ([*NATIVE, "--steps", "0"], "--steps 0 makes no sample", "--steps 1 or more"),
        ([*NATIVE, "--schedule", "shif:3"], "no schedule 'shif:3'", "did you mean shift"),
        ([*NATIVE, "--schedule", "shift:0"], "shift:0 is not possible", "write a number above 0"),
        ([*NATIVE, "--schedule", "1,0.5,1.5,0"], "the schedule leaves [0, 1]", "write times from 1 to 0"),
        ([*NATIVE, "--schedule", "1,0.5,0"], "--steps 4, and the schedule lists 2", "--steps 2, or leave it out"),
        ([*NATIVE, "--schedule", "trailing"], "'trailing' counts training steps", "--schedule uniform"),
        ([*NATIVE, "--set", "time_scal=1"], "has an option 'time_scal'", "did you mean time_scale"),
        ([*NATIVE, "--set", "steps=3"], "steps has an option of its own", "--steps 3"),
        ([*NATIVE, "--set", "time_scale"], "is not name=value", "such as --set time_scale=1"),
        ([*NATIVE, "--set", "first_time=2"], "is not on the path", "first_time and last_time between 0.0 and 1.0"),
        ([*NATIVE, "--set", "prediction=average-velocity"], "two times", ""),
        (
            ["--solver", "meanflow", *NATIVE[2:]],
            "meanflow does not fit the convention",
            "--set prediction=average-velocity",
        ),
        ([*NATIVE, "--set", "eta=1", "--set", "eta=2"], "--set names eta twice", ""),
        ([*NATIVE, "--guidance", "cgf:4"], "there is no guidance 'cgf'", "did you mean cfg"),
        ([*NATIVE, "--guidance", "cfg"], "has no scale", "--guidance cfg:4"),
        ([*NATIVE, "--guidance", "cfg:inf"], "is not finite", ""),
        ([*NATIVE, "--unconditional", "label=9"], "--unconditional without --guidance", "--guidance cfg:4"),
        ([*NATIVE, "--guidance-channels", "3"], "--guidance-channels without --guidance", "--guidance cfg:4"),
        ([*NATIVE, "--guidance", "cfg:4", "--unconditional", "label"], "is not an input's name", "label=1000"),
        ([*NATIVE, "--clamp", "1..-1"], "leaves no number", "--clamp -1..1"),
        ([*NATIVE, "--clamp", "1"], "is not low..high", "--clamp -1..1"),
        ([*NATIVE, "--form", "scna"], "'scna' is not one of 'auto', 'scan'", "flowopt sampler --help"),
        ([*NATIVE, "--target", "torch", "--form", "scan"], "--target torch writes copies", "leave --form out"),
        ([*NATIVE, "--scheduler", "absent"], "--solver beside --scheduler", "leave one of the two out"),
        ([*NATIVE, "--require-device", "--verify", "off"], "--require-device asks for a check", None),
    ],
)
def test_words_that_mean_nothing_are_exit_2_before_the_model_is_loaded(
    options: list[str], complaint: str, hint: str | None
) -> None:
    ran = flowopt("sampler", model("broken"), *options)
    if not hint:
        assert ran.code == 2 and complaint in ran.err
        return
    message = refused(ran)
    assert complaint in message.split("  try   ")[0]
    assert hint in message.split("  try   ")[1]


@pytest.mark.parametrize(
    ("name", "options", "complaint", "hint"),
    [
        (
            "timed",
            ("--solver", "meanflow", "--steps", "1", "--convention", "meanflow"),
            "the sampler gives the network 2 time(s), and it takes t",
            "choose a sampler for such networks",
        ),
        ("guessed", (*NATIVE, "--sample", "a", "--time", "c"), "'c' cannot be a time", "--sample x, --time t"),
        ("guessed", (*NATIVE, "--set", "arguments=time-first"), "the sample is cannot be told", "--sample x, --time t"),
        ("timed", (*NATIVE, "--sample", "y"), "no input 'y'", "--sample x, --time t"),
        ("pair", NATIVE, "the network has the outputs", "--prediction "),
        ("timed", (*NATIVE, "--guidance", "cfg:4"), "guidance needs a condition", "leave guidance out"),
        (
            "labelled",
            (*NATIVE, "--guidance", "cfg:1,2", "--unconditional", "label=9"),
            "2 guidance scales for 4 evaluations",
            "one per evaluation",
        ),
        (
            "labelled",
            (*NATIVE, "--guidance", "cfg:4", "--unconditional", "lable=9"),
            "guidance without lable, but the network's conditions are ['label']",
            "did you mean label?",
        ),
    ],
)
def test_a_sampler_that_does_not_fit_the_network_is_exit_2(
    name: str, options: tuple[str, ...], complaint: str, hint: str
) -> None:
    message = refused(flowopt("sampler", model(name), *options))
    assert complaint in message.split("  try   ")[0]
    assert hint in message.split("  try   ")[1]


def saved(scheduler: Any) -> str:
    scheduler.save_pretrained("pipeline/scheduler")
    return "pipeline"


@pytest.mark.parametrize(
    ("scheduler", "options", "complaint", "hint"),
    [
        (diffusers.DDIMScheduler(), ("--steps", "4"), "its steps are not linear", "try   --set clip_sample=false"),
        (diffusers.DDIMScheduler(clip_sample=False), (), "how many steps?", "--steps 28"),
        (diffusers.DDIMScheduler(clip_sample=False), ("--steps", "0"), "--steps 0", "ask for 1 step or more"),
        (
            diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            ("--steps", "4"),
            "and mu is missing",
            "such as --set mu=1.15",
        ),
    ],
)
def test_a_scheduler_that_makes_no_table_is_exit_2(
    scheduler: Any, options: tuple[str, ...], complaint: str, hint: str
) -> None:
    message = refused(flowopt("sampler", model("broken"), "--scheduler", saved(scheduler), *options))
    assert complaint in message and hint in message


@pytest.mark.parametrize(
    ("content", "code", "complaint"),
    [
        (None, 66, "scheduler_config.json does not exist"),
        ("<html>", 65, "is no configuration of a scheduler"),
        ('{"shift": 3.0}', 65, "is no configuration of a scheduler"),
        ('{"_class_name": "DDIMSchedular"}', 2, "diffusers has no scheduler 'DDIMSchedular'"),
        ('{"_class_name": "UNet2DModel"}', 2, "diffusers has no scheduler 'UNet2DModel'"),
        ('{"_class_name": "os.system"}', 2, "diffusers has no scheduler 'os.system'"),
    ],
)
def test_a_file_that_describes_no_scheduler_says_so(content: str | None, code: int, complaint: str) -> None:
    if content is not None:
        Path("scheduler_config.json").write_text(content)
    ran = flowopt("sampler", model("broken"), "--scheduler", "scheduler_config.json", "--steps", "4")
    assert complaint in refused(ran, code)


def test_a_setting_that_the_scheduler_refuses_is_exit_2() -> None:
    Path("scheduler_config.json").write_text(json.dumps({"_class_name": "DDIMScheduler", "beta_schedule": "none"}))
    ran = flowopt("sampler", model("broken"), "--scheduler", ".", "--steps", "4")
    assert ran.code == 2
    assert "DDIMScheduler refuses the settings in scheduler_config.json: none is not implemented for" in ran.err


def test_without_diffusers_a_scheduler_is_exit_69(monkeypatch: pytest.MonkeyPatch) -> None:
    saved(diffusers.DDIMScheduler(clip_sample=False))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    ran = flowopt("sampler", model("broken"), "--scheduler", "pipeline", "--steps", "4")
    assert "pip install diffusers" in refused(ran, 69)
