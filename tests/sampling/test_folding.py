"""Folded samplers against loops written by hand around the network itself."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from flowopt.errors import UserError
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.program.sampler_program import SamplerProgram
from flowopt.sampling import ClassifierFree, Epilogue, SamplerSpec, fold
from flowopt.sampling.plain_loop import PlainLoop
from flowopt.sampling.roles import roles_of
from tests.sampling.networks import (
    CHANNELS,
    SIZE,
    TEXT,
    Averaged,
    Labelled,
    Prompted,
    Timed,
    WithVariance,
    by_hand,
    captured,
    relative,
    times_of,
)
from tests.sampling.samplers import averaged, euler, heun, noisy
from tests.zoo.randomise import randomise

# A few roundings per step, of numbers near the sample's own scale.
FLOAT32 = 3e-6
# Tables are rounded to float32 once; all else in float64 agrees to rounding.
FLOAT64 = 1e-12


def noise(batch: int, *leading: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*leading, batch, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).to(dtype)


def expected(
    module: nn.Module,
    spec: SamplerSpec,
    x: Tensor,
    names: tuple[str, ...] = ("t",),
    more: dict[str, Tensor] | None = None,
) -> Tensor:
    def predict(sample: Tensor, times: tuple[float, ...]) -> Tensor:
        with torch.no_grad():
            found: Tensor = module(x=sample, **times_of(more or {}, names, times, sample))
        return found

    return by_hand(spec, predict, x)


@pytest.mark.parametrize(
    "spec", [euler(1), euler(4), heun(3), euler(20, start=7.0)], ids=lambda s: f"{s.name}-{s.evaluations}"
)
def test_the_loop_is_the_samplers(spec: SamplerSpec) -> None:
    module = Timed()
    folded = fold(captured(module), spec)
    for x in (noise(1), noise(5)):
        found = folded.run(x)
        assert isinstance(found, Tensor)
        assert relative(found, expected(module, spec, x)) < FLOAT32


def test_weights_of_the_time_are_gone() -> None:
    program = captured(Timed())
    folded = fold(program, euler(4))
    assert any("time" in name for name in program.tensors)
    assert not any("time" in name for name in folded.step.tensors)
    assert [i.name for i in folded.step.inputs if "at_step" in i.name] == list(folded.loop.tables)
    assert all(len(table) == 4 for table in folded.loop.tables.values())


def test_one_step_has_no_table() -> None:
    folded = fold(captured(Timed()), euler(1))
    assert [i.name for i in folded.step.inputs] == ["state_0"]
    assert not folded.loop.tables


def test_a_table_larger_than_the_layers_that_make_it_is_not_made() -> None:
    folded = fold(captured(Timed()), euler(600))
    assert any("time" in name for name in folded.step.tensors)


def test_state_is_float32_for_a_network_in_sixteen_bits() -> None:
    module = Timed()
    folded = fold(captured(module, dtype=torch.bfloat16), euler(4))
    assert folded.prologue.inputs[0].dtype == torch.float32
    assert {o.dtype for o in folded.step.outputs} == {torch.float32}
    found, x = folded.run(noise(2)), noise(2)
    assert isinstance(found, Tensor)
    wanted = by_hand(euler(4), lambda s, t: module(s.bfloat16(), torch.full((2,), t[0]).bfloat16()).float(), x).detach()
    assert relative(found, wanted) < 2e-2  # of sums in 8 bits


def test_noise_on_the_way_is_an_input() -> None:
    module, spec = Timed(), noisy(4)
    folded = fold(captured(module), spec)
    x, draws = noise(2), noise(2, spec.draws)
    with torch.no_grad():
        wanted = by_hand(spec, lambda s, t: module(s, torch.full((2,), t[0])), x, list(draws))
    found = folded.run(noise=x, draws=draws)
    assert isinstance(found, Tensor)
    assert relative(found, wanted) < FLOAT32
    other = folded.run(noise=x, draws=draws * 1.1)
    assert isinstance(other, Tensor)
    assert relative(other, wanted) > 1e-3


def test_times_may_come_first_and_conditions_keep_their_names() -> None:
    module, spec = Prompted(), euler(3)
    folded = fold(captured(module), spec)
    assert [i.name for i in folded.prologue.inputs] == ["noise", "text", "place", "spare"]
    more = {"text": torch.randn(2, 7, TEXT), "place": torch.randn(SIZE, SIZE), "spare": torch.zeros(2, 2)}
    x = noise(2)
    found = folded.run(noise=x, **more)
    assert isinstance(found, Tensor)
    assert relative(found, expected(module, spec, x, more=more)) < FLOAT32


def test_two_times() -> None:
    module, spec = Averaged(), averaged(3)
    found, x = fold(captured(module), spec).run(noise(2)), noise(2)
    assert isinstance(found, Tensor)
    assert relative(found, expected(module, spec, x, ("t", "h"))) < FLOAT32


def test_a_learned_variance_is_left_out_and_whole_times_are_looked_up() -> None:
    module, spec = WithVariance(), euler(4, scale=800)
    found, x = fold(captured(module), spec).run(noise(2)), noise(2)
    with torch.no_grad():
        wanted = by_hand(spec, lambda s, t: module(s, torch.full((2,), int(t[0])))[:, :CHANNELS], x)
    assert isinstance(found, Tensor)
    assert relative(found, wanted) < FLOAT32


@pytest.mark.parametrize(
    ("order", "difference"),
    [("unconditional-first", "from-unconditional"), ("conditional-first", "from-conditional")],
)
def test_guidance_of_labels(order: str, difference: str) -> None:
    module, spec = Labelled(), heun(2)
    guidance = ClassifierFree(2.5, {"label": 9}, difference=difference, order=order)  # type: ignore[arg-type]  # of the parametrization
    folded = fold(captured(module), spec, guidance=guidance)
    x, label = noise(3), torch.tensor([1, 0, 4])

    def predict(sample: Tensor, times: tuple[float, ...]) -> Tensor:
        t = torch.full((3,), times[0])
        given, without = module(sample, t, label), module(sample, t, torch.full_like(label, 9))
        return (without if difference == "from-unconditional" else given) + 2.5 * (given - without)

    with torch.no_grad():
        wanted = by_hand(spec, predict, x)
    found = folded.run(noise=x, label=label)
    assert isinstance(found, Tensor)
    assert relative(found, wanted) < FLOAT32


def test_guidance_of_some_channels_with_a_scale_per_evaluation_and_a_text_for_no_text() -> None:
    module, spec = Prompted(), euler(3)
    guidance = ClassifierFree((1.0, 4.0, 0.0), channels=3)
    folded = fold(captured(module), spec, guidance=guidance)
    names = [i.name for i in folded.prologue.inputs]
    assert names == ["noise", "text", "unconditional_text", "place", "spare"]
    x, place, spare = noise(2), torch.randn(SIZE, SIZE), torch.zeros(2, 2)
    text, empty = torch.randn(2, 4, TEXT), torch.randn(2, 4, TEXT)
    scales = iter((1.0, 4.0, 0.0))

    def predict(sample: Tensor, times: tuple[float, ...]) -> Tensor:
        t = torch.full((2,), times[0])
        given, without = module(t, sample, text, place, spare), module(t, sample, empty, place, spare)
        moved = without + next(scales) * (given - without)
        return torch.cat([moved[:, :3], given[:, 3:]], dim=1)

    with torch.no_grad():
        wanted = by_hand(spec, predict, x)
    found = folded.run(noise=x, text=text, unconditional_text=empty, place=place, spare=spare)
    assert isinstance(found, Tensor)
    assert relative(found, wanted) < FLOAT32


def test_the_guidance_scale_may_be_an_input() -> None:
    module, spec = Labelled(), euler(3)
    folded = fold(captured(module), spec, guidance=ClassifierFree(None, {"label": 9}))
    fixed = fold(captured(module), spec, guidance=ClassifierFree(3.25, {"label": 9}))
    x, label = noise(2), torch.tensor([1, 5])
    found = folded.run(noise=x, label=label, guidance_scale=torch.tensor(3.25))
    wanted = fixed.run(noise=x, label=label)
    assert isinstance(found, Tensor)
    assert isinstance(wanted, Tensor)
    assert relative(found, wanted) < FLOAT32


@pytest.mark.parametrize("value", [9.5, float("nan"), float("inf")])
def test_a_label_for_none_that_is_no_whole_number_is_refused(value: float) -> None:
    with pytest.raises(UserError, match="cannot stand for no label, which is int64"):
        fold(captured(Labelled()), euler(2), guidance=ClassifierFree(2.0, {"label": value}))


def test_a_guided_batch_goes_up_to_half_of_what_the_network_takes() -> None:
    program = captured(Labelled())
    assert [(d.name, d.maximum) for d in program.dims] == [("batch", 16)]
    assert fold(program, euler(2)).interface.dims["batch"] == (1, 16)
    guided = fold(program, euler(2), guidance=ClassifierFree(2.0, {"label": 9}))
    assert guided.interface.dims["batch"] == (1, 8)


def test_the_sample_is_scaled_shifted_and_clamped_in_the_end() -> None:
    program, x = captured(Timed()), noise(2)
    plain = fold(program, euler(2)).run(x)
    found = fold(program, euler(2), output=Epilogue(2.0, 0.5, (-1.0, 1.0))).run(x)
    assert isinstance(plain, Tensor)
    assert isinstance(found, Tensor)
    assert torch.equal(found, (plain * 2 + 0.5).clamp(-1, 1))
    assert float(found.abs().max()) == 1.0


def test_the_float64_twin_is_the_network_in_float64() -> None:
    module, spec = Timed(), heun(3)
    program = captured(module)
    x = noise(2, dtype=torch.float64)
    twin = program.raised_copy()

    def predict(sample: Tensor, times: tuple[float, ...]) -> Tensor:
        return twin.run_named({"x": sample, "t": torch.full((2,), times[0]).double()})["output"]

    wanted = by_hand(spec, predict, x)
    found = fold(program, spec).raised_copy().run_named({"noise": x})["sample"]
    assert relative(found, wanted) < FLOAT64


def test_source_lines_survive() -> None:
    folded = fold(captured(Timed()), euler(3))
    convolutions = [n for n in folded.step.graph.nodes if "conv" in str(n.target) and n.op == "call_function"]
    assert convolutions
    assert all("networks.py" in n.meta["stack_trace"] for n in convolutions)


def test_the_network_is_traced_once_whatever_the_number_of_steps() -> None:
    few, many = (fold(captured(Timed()), euler(steps)) for steps in (2, 40))
    assert len(few.step.graph.nodes) == len(many.step.graph.nodes)


def test_the_callers_program_is_left_as_it_was() -> None:
    program = captured(Timed())
    before, names = str(program.graph), sorted(program.tensors)
    fold(program, heun(3))
    assert str(program.graph) == before
    assert sorted(program.tensors) == names


def test_parts_share_the_networks_tensors() -> None:
    program: Program = captured(Timed())
    folded: SamplerProgram = fold(program, euler(4))
    stored = {t.untyped_storage().data_ptr() for t in program.tensors.values()}
    assert {folded.step.tensors[n].untyped_storage().data_ptr() for n in folded.step.tensors} <= stored


@pytest.mark.parametrize(("spec", "scale"), [(euler(1), 2.5), (heun(2), None), (noisy(3), 2.5)])
def test_folding_is_an_identity_in_float64(spec: SamplerSpec, scale: float | None) -> None:
    program = captured(Labelled())
    guidance = ClassifierFree(scale, {"label": 9}, channels=3)
    inputs = {"noise": noise(2), "label": torch.tensor([3, 0])}
    inputs |= {"draws": noise(2, spec.draws)} if spec.draws else {}
    inputs |= {"guidance_scale": torch.tensor(1.5)} if scale is None else {}
    plain = PlainLoop(program.raised_copy(), roles_of(program, 1), spec, guidance, Epilogue(0.5))
    raised = {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}
    folded = fold(program, spec, guidance=guidance, output=Epilogue(0.5)).raised_copy()
    assert relative(folded.run_named(raised)["sample"], plain.run(inputs)) < FLOAT64


def test_a_network_out_of_a_file_brings_no_example() -> None:
    program = dataclasses.replace(captured(Labelled()), example={})
    folded = fold(program, euler(2), guidance=ClassifierFree(2.0))
    assert folded.prologue.example["noise"].shape == (3, CHANNELS, SIZE, SIZE)
    assert folded.prologue.example["label"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("most", "batch"), [(4, 2), (5, 2), (16, 3)])
def test_a_guided_example_fits_half_of_the_networks_batch(most: int, batch: int) -> None:
    folded = fold(limited(most), euler(2), guidance=ClassifierFree(2.0))
    assert folded.prologue.example["noise"].shape[0] == batch
    assert folded.interface.dims["batch"] == (1, most // 2)


def test_guidance_of_a_network_for_few_samples_is_refused() -> None:
    with pytest.raises(UserError, match="captured for at most 3 samples"):
        fold(limited(3), euler(2), guidance=ClassifierFree(2.0))


def limited(most: int) -> Program:
    module = Labelled().eval()
    inputs = {"x": torch.randn(3, CHANNELS, SIZE, SIZE), "t": torch.full((3,), 0.5), "label": torch.zeros(3).long()}
    dynamic = {name: {0: "batch"} for name in inputs}
    return capture(module, (), inputs, dynamic=dynamic, dims={"batch": (1, most)})


def test_other_outputs_and_what_only_they_read_are_left_out() -> None:
    class Two(Labelled):
        def forward(self, x: Tensor, t: Tensor, label: Tensor, spare: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return {"other": x + spare[:, :, None, None], "prediction": super().forward(x, t, label)}

    module = Two()
    randomise(module, 5)
    inputs = {
        "x": noise(2),
        "t": torch.full((2,), 0.5),
        "label": torch.tensor([1, 2]),
        "spare": torch.ones(2, CHANNELS),
    }
    program = capture(module.eval(), (), inputs, dynamic={name: {0: "batch"} for name in inputs})
    folded = fold(program, euler(2), guidance=ClassifierFree(2.0, {"label": 9}), prediction="prediction")
    alone = Labelled()
    alone.load_state_dict(module.state_dict())
    x, label = noise(3), torch.tensor([0, 4, 1])

    def predict(sample: Tensor, times: tuple[float, ...]) -> Tensor:
        t = torch.full((3,), times[0])
        without = alone(sample, t, torch.full_like(label, 9))
        return without + 2.0 * (alone(sample, t, label) - without)

    with torch.no_grad():
        wanted = by_hand(euler(2), predict, x)
    found = folded.run(noise=x, label=label, spare=torch.zeros(3, CHANNELS))
    assert isinstance(found, Tensor)
    assert relative(found, wanted) < FLOAT32
