import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.zoo.capture import exported, resized
from tests.zoo.models import ZOO, ZooModel, randomise
from tests.zoo.randomise import is_norm

RANDOM = tuple(name for name in ZOO if name != "minilm")
TEXT = ("minilm", "gpt2", "bert", "llama", "t5")


@pytest.fixture(scope="module")
def zoo() -> dict[str, ZooModel]:
    # Built once, for the tests that only read.
    return {name: build() for name, build in ZOO.items()}


def outputs(module: nn.Module, kwargs: dict[str, Tensor | bool]) -> list[Tensor]:
    with torch.no_grad():
        leaves = pytree.tree_leaves(module(**kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("name", ZOO)
def test_runs_on_its_example(zoo: dict[str, ZooModel], name: str) -> None:
    model = zoo[name]
    assert model.name == name
    assert not any(part.training for part in model.module.modules())
    found = outputs(model.module, model.kwargs)
    assert found
    assert all(bool(output.isfinite().all()) for output in found)


@pytest.mark.parametrize("name", ZOO)
def test_outputs_depend_on_the_inputs(zoo: dict[str, ZooModel], name: str) -> None:
    # Deep random networks can drown their input in biases; then no early rewrite could fail a comparison.
    model = zoo[name]
    sizes = dict.fromkeys(model.dims, 5)
    first, second = (outputs(model.module, resized(model, sizes, seed)) for seed in (0, 1))
    for one, other in zip(first, second, strict=True):
        assert float((one - other).std()) > 0.05 * float(one.std())


@pytest.mark.parametrize("name", RANDOM)
def test_no_parameter_keeps_a_value_that_hides_a_fold(zoo: dict[str, ZooModel], name: str) -> None:
    for owner_name, owner in zoo[name].module.named_modules():
        for own_name, value in owner.named_parameters(recurse=False):
            where = f"{owner_name}.{own_name}"
            if own_name.endswith("bias"):
                assert bool((value != 0.0).all()), where
            elif is_norm(owner):
                assert bool((value != 1.0).all()), where
                assert int((value == 0.0).sum()) == 1, where
                assert bool((value < 0.0).any()), where
            else:
                assert bool((value != 0.0).all()), where


@pytest.mark.parametrize("name", ["digits-vit", "resnet", "mobilenet-v2"])
def test_no_batch_norm_keeps_its_initial_statistics(zoo: dict[str, ZooModel], name: str) -> None:
    norms = [part for part in zoo[name].module.modules() if isinstance(part, nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert bool((norm.running_mean != 0.0).all())
        assert bool((norm.running_var >= 0.3).all())
        assert bool((norm.running_var <= 2.0).all())
        assert float(norm.running_var.std()) > 0.1


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("gpt2", "lm_head.weight", "transformer.wte.weight"),
        ("t5", "shared.weight", "encoder.embed_tokens.weight"),
    ],
)
def test_randomise_keeps_tied_weights_tied(name: str, first: str, second: str) -> None:
    module = ZOO[name]().module
    randomise(module, seed=11)
    assert module.get_parameter(first) is module.get_parameter(second)


@pytest.mark.parametrize(
    ("name", "buffer"),
    [
        ("llama", "model.rotary_emb.inv_freq"),
        ("bert", "embeddings.position_ids"),
        ("resnet", "resnet.embedder.embedder.normalization.num_batches_tracked"),
    ],
)
def test_randomise_keeps_constants(name: str, buffer: str) -> None:
    module = ZOO[name]().module
    before = module.get_buffer(buffer).clone()
    randomise(module, seed=11)
    assert torch.equal(module.get_buffer(buffer), before)


@pytest.mark.parametrize("name", ["digits-vit", "gpt2", "resnet"])
def test_two_builds_have_equal_weights(zoo: dict[str, ZooModel], name: str) -> None:
    again = ZOO[name]().module.state_dict()
    for key, value in zoo[name].module.state_dict().items():
        assert torch.equal(value, again[key]), key


@pytest.mark.parametrize("name", TEXT)
def test_text_examples_are_right_padded(zoo: dict[str, ZooModel], name: str) -> None:
    mask = zoo[name].kwargs["attention_mask"]
    assert isinstance(mask, Tensor)
    assert bool((mask.diff(dim=1) <= 0).all())
    assert bool((mask[:, 0] == 1).all())
    assert bool((mask == 0).any())


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_export_agrees_at_other_sizes(name: str) -> None:
    model = ZOO[name]()
    captured = exported(model).module()
    # The ends of each dimension with the others small, then sizes that are in no configuration.
    cases = [{dim: low for dim, (low, _) in model.dims.items()}, dict.fromkeys(model.dims, 5)]
    for dim, (_, high) in model.dims.items():
        cases.append({other: high if other == dim else low for other, (low, _) in model.dims.items()})
    for sizes in cases:
        kwargs = resized(model, sizes, seed=3)
        for found, wanted in zip(outputs(captured, kwargs), outputs(model.module, kwargs), strict=True):
            # The same kernels in the same order; room for one that splits its sums by memory layout.
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
