"""What users put behind ``package.module:function``: right and wrong."""

from typing import Any

import torch
from torch import nn

from flowopt.program.capture import capture
from flowopt.program.program import Program
from tests.program.models import Affine

NOT_A_FUNCTION = 3


def pair() -> tuple[nn.Module, tuple[Any, ...]]:
    return Affine().eval(), (torch.zeros(5, 3),)


def triple() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    return Affine().eval(), (), {"x": torch.zeros(5, 3)}


def dictionary() -> dict[str, Any]:
    return {
        "module": Affine().eval(),
        "args": (torch.zeros(5, 3),),
        "dynamic": {"x": {0: "batch"}},
        "dims": {"batch": (1, 64)},
    }


def program() -> Program:
    return capture(*pair())


def training() -> tuple[nn.Module, tuple[Any, ...]]:
    return Affine(), (torch.zeros(5, 3),)


def misspelled() -> dict[str, Any]:
    return {"module": Affine().eval(), "inputs": (torch.zeros(5, 3),)}


def module_alone() -> nn.Module:
    return Affine().eval()


def bare_tensor() -> tuple[nn.Module, torch.Tensor]:
    return Affine().eval(), torch.zeros(5, 3)


def nothing() -> None:
    return None
