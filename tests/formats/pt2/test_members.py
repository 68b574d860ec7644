import pytest

from flowopt.errors import FlowoptError, MalformedModel, Untrusted
from flowopt.formats.pt2.members import sorted_members
from tests.hostile.pt2_archive import CONSTANTS, MODEL, SAMPLES, WEIGHTS, parts

NAMES = [*parts(), "data/constants/tensor_0", "extra/notes/a.txt"]
EXTENTS = {f"root/{name}": (index, 1) for index, name in enumerate(NAMES)}


def test_each_member_has_its_purpose() -> None:
    found = sorted_members(EXTENTS)
    at = {name: (index, 1) for index, name in enumerate(NAMES)}
    assert found.model == "model"
    assert (found.graph, found.weights_config, found.constants_config) == (at[MODEL], at[WEIGHTS], at[CONSTANTS])
    assert found.weights == {n: at[f"data/weights/{n}"] for n in ("weight_0", "weight_1")}
    assert found.constants == {"tensor_0": at["data/constants/tensor_0"]}
    assert found.extra == {"notes/a.txt": at["extra/notes/a.txt"]}
    assert at[SAMPLES] not in (found.graph, *found.weights.values(), *found.small.values())


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("data/aotinductor/model/x.cpp", Untrusted),
        ("data/executorch/model.pte", Untrusted),
        ("data/constants/custom_obj_0", Untrusted),
        ("data/constants/opaque_obj_0", Untrusted),
        ("data/weights/model.pt", Untrusted),
        ("data/sample_inputs/other.pt", Untrusted),
        ("serialized_exported_program.json", Untrusted),
        ("data/other", MalformedModel),
        ("data/weights/other", MalformedModel),
        ("models/other.json", MalformedModel),
    ],
)
def test_another_member_is_refused(name: str, error: type[FlowoptError]) -> None:
    with pytest.raises(error) as caught:
        sorted_members({**EXTENTS, f"root/{name}": (0, 1)})
    assert caught.value.hint or caught.value.retry


@pytest.mark.parametrize("name", [MODEL, WEIGHTS, CONSTANTS, "archive_format", "archive_version"])
def test_a_missing_member_is_refused(name: str) -> None:
    with pytest.raises(MalformedModel):
        sorted_members({key: value for key, value in EXTENTS.items() if key != f"root/{name}"})


def test_two_top_folders_are_refused() -> None:
    with pytest.raises(MalformedModel, match="2 top folders"):
        sorted_members({**EXTENTS, "other/version": (0, 1)})
