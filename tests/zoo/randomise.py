"""Random values for everything that training would have set, so that no default hides a wrong rewrite."""

import math

import torch
from torch import Tensor, nn


def randomise(module: nn.Module, seed: int) -> None:
    """Overwrite, in place, every floating parameter and the running statistics of every batch norm.

    A gain of 1, a bias of 0 or a variance of 1 makes a fold that forgets it look right. Instead:
    weights have variance 1/fan_in, those of convolutions 2/fan_in; biases 0.3²; gains 0.3² around 1, with one
    channel 0 and one negative; running means 0.5²; running variances are uniform in [0.3, 2].
    Tied parameters stay tied. Other buffers (rotary frequencies, position ids, masks, counters) are constants
    of the architecture and keep their values.
    """
    generator = torch.Generator().manual_seed(seed)
    done: set[int] = set()
    with torch.no_grad():
        for owner in module.modules():
            for name, parameter in owner.named_parameters(recurse=False):
                if parameter.is_floating_point() and id(parameter) not in done:
                    done.add(id(parameter))
                    parameter.copy_(parameter_values(owner, name, parameter, generator))
            for name, buffer in owner.named_buffers(recurse=False):
                if name == "running_mean":
                    buffer.normal_(0.0, 0.5, generator=generator)
                elif name == "running_var":
                    buffer.uniform_(0.3, 2.0, generator=generator)


def is_norm(module: nn.Module) -> bool:
    # By class name, because the norms of transformers (T5LayerNorm, LlamaRMSNorm) have no common base.
    return "Norm" in type(module).__name__


def parameter_values(owner: nn.Module, name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    normal = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    if name.endswith("bias"):
        return 0.3 * normal
    if is_norm(owner):
        gain = 1.0 + 0.3 * normal
        zero, negative = torch.randperm(gain.numel(), generator=generator)[:2].tolist()
        gain.view(-1)[zero] = 0.0
        gain.view(-1)[negative] = -gain.view(-1)[negative].abs()
        return gain
    # Half the power of a convolution's output is lost in the ReLU after it. With 1/fan_in, MobileNet's 52
    # convolutions lose so much that the output hardly depends on the input; a wrong early fold would hide.
    power = 2.0 if is_convolution(owner) else 1.0
    return normal * math.sqrt(power / fan_in(owner, parameter))


def is_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)


def fan_in(owner: nn.Module, parameter: Tensor) -> int:
    if parameter.dim() == 0:
        return 1
    # The layer called Conv1D in transformers is a linear layer with its weight stored (in, out).
    if type(owner).__name__ == "Conv1D":
        return parameter.shape[0]
    if is_convolution(owner):
        return parameter[0].numel()
    # An embedding's rows are summed, not multiplied; their width is used so that a table tied to a linear
    # layer gets that layer's scale, whichever of the two is met first.
    return parameter.shape[-1]
