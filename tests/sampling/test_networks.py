"""Networks of diffusers with guidance, folded, against the library's own loops."""

from pathlib import Path

import pytest
import torch

from flowopt.sampling import fold
from tests.goals.sampler_networks import folded_of, measured
from tests.lowering.build_sampler import build_sampler
from tests.lowering.test_sampler_forms import FORMS
from tests.sampling.forced import forced_steps, library_against_itself
from tests.sampling.networks import relative
from tests.sampling.pipelines import CASES, captured, inputs_of, library_run, model_of

# One network, guided by 4, in float32: the library's own step moves by 0.8e-6 when its batch is cut up.
STEP, END = 1e-6, 1e-6


@pytest.mark.slow
def test_a_guided_dit_is_the_pipelines_loop_step_by_step_and_as_a_file(tmp_path: Path) -> None:
    case, steps = CASES["dit, DDIM"], 4
    model = model_of(case)
    spec, inputs = case.spec(steps), inputs_of(model)
    folded = fold(captured(model), spec, guidance=case.guidance, sample="sample")
    library = library_run(case, model.module, inputs, steps)
    forced = forced_steps(folded, spec, library, inputs)
    assert max(step.error(folded.step.run_named) for step in forced) < STEP
    sample = build_sampler(folded, tmp_path / "out", "scan").artifact.run(**inputs)
    assert isinstance(sample, torch.Tensor)
    assert relative(sample, library.samples[-1]) < END
    # Other labels are seen by both.
    other = {**inputs, "label": (inputs["label"] + 1) % 10}
    moved = library_run(case, model.module, other, steps).samples[-1]
    assert relative(moved, library.samples[-1]) > 1e-2
    assert max(step.error(folded.step.run_named) for step in forced_steps(folded, spec, library, other)) > 1e-2
    assert max(library_against_itself(case, model.module, spec, library, inputs)) < STEP


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_network_of_diffusers_is_its_pipelines_loop_in_every_form(name: str) -> None:
    case, steps = CASES[name], 4
    model = model_of(case)
    program = captured(model)
    found = measured(case, model.module, program, folded_of(case, program, steps), steps)
    assert list(found.ends) == list(FORMS)
    # As far as the library's own numbers move when its network runs for each sample by itself.
    assert found.step < max(STEP, 2 * max(found.itself))
    assert max(found.end, found.between) < max(END * max(found.kappa, 1.0), 2 * found.itself_end)
