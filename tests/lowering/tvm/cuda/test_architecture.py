"""Names of GPU architectures become targets, or are answered with the names there are."""

import pytest

from flowopt.errors import UserError
from flowopt.lowering.tvm.cuda.architecture import ARCHITECTURES, cuda_target, require_architecture


@pytest.mark.parametrize("arch", ["sm_42", "hopper", "sm_90a", ""])
def test_an_unknown_architecture_is_refused_with_the_known_ones(arch: str) -> None:
    with pytest.raises(UserError, match=r"sm_80 \(A100, A30\)") as caught:
        require_architecture(arch)
    assert f"{arch!r}" in str(caught.value)


@pytest.mark.parametrize("written", ["9.0", "90", "compute_90", "SM_90", "sm_90a"])
def test_another_spelling_is_answered_with_the_option_to_write(written: str) -> None:
    with pytest.raises(UserError) as caught:
        require_architecture(written)
    assert caught.value.hint == "--arch sm_90"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_target_names_every_limit_and_no_library(arch: str) -> None:
    pytest.importorskip("tvm")
    target = cuda_target(arch)
    assert target.attrs["arch"] == arch
    assert target.attrs["max_threads_per_block"] == 1024
    assert target.attrs["max_shared_memory_per_block"] == 49152
    assert target.attrs["thread_warp_size"] == 32
    assert not target.attrs.get("libs", [])
    assert target.host.kind.name == "llvm"
