import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.ops.distributed import NORMS, trained

_PROCESSES = 2


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """What each of two processes has after the steps, of every norm."""
    folder = tmp_path_factory.mktemp("gloo")
    # The processes meet on this machine: a name that resolves elsewhere is no concern of theirs.
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "tests.ops.distributed", str(folder)]
    children = [
        subprocess.Popen([*command, str(rank), str(_PROCESSES)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(_PROCESSES)
    ]
    for child in children:
        _, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors
    return [torch.load(Path(folder) / f"rank{rank}.pt") for rank in range(_PROCESSES)]


@pytest.mark.slow
@pytest.mark.parametrize("name", NORMS)
def test_two_processes_compute_what_one_does(name: str, by_rank: list[dict[str, dict[str, Tensor]]]) -> None:
    alone = trained(name, 0, 1)
    for results in by_rank:
        assert results[name].keys() == alone.keys()
        for key, value in results[name].items():
            # The same sums in another order, over three steps.
            assert torch.allclose(value, alone[key], rtol=1e-10, atol=1e-12), key
