"""The stored tensors of a program inside a module: some are trained, the others stay what they are."""

from collections.abc import Callable, Collection, Mapping
from typing import Final, final

import torch
from torch import Tensor, nn

from flowopt.recovery.low_rank import LowRank

# Steps of training are smaller than what these can tell apart.
_NARROW: Final = (torch.float16, torch.bfloat16)


@final
class StoredTensors(nn.Module):
    """Trained tensors as parameters, copied; constants as buffers that ``state_dict`` leaves out.

    A tensor of 16 bits is trained in float32 and rounded when it is read. Names that share one tensor share the
    parameter. A parameter may have an adapter: it is frozen then, and what is read is what the adapter makes of it.

    Args:
        tensors: by name; none is written to.
        trained: names of those that become parameters; each is floating.
    """

    def __init__(self, tensors: Mapping[str, Tensor], trained: Collection[str]) -> None:
        super().__init__()
        self._dtypes = {name: tensors[name].dtype for name in tensors if name in trained}
        self._keys: dict[str, str] = {}
        self.adapters = nn.ModuleDict()
        shared: dict[tuple[object, ...], str] = {}
        for name, tensor in tensors.items():
            # A dot would be taken for a path of modules; the leading slash keeps clear of the module's own attributes.
            key = "/" + name.replace(".", "/")
            if name in trained:
                same = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
                key = shared.setdefault(same, key) if tensor.numel() else key
            self._keys[name] = key
            if name not in trained:
                self.register_buffer(key, tensor.detach(), persistent=False)
            elif key not in self._parameters:
                wide = torch.float32 if tensor.dtype in _NARROW else tensor.dtype
                copied = tensor.detach().clone(memory_format=torch.preserve_format).to(wide)
                self.register_parameter(key, nn.Parameter(copied))

    def read(self, name: str) -> Tensor:
        """The tensor of a name, in the dtype that the program stores; gradients reach the parameter."""
        key = self._keys[name]
        parameter = self._parameters.get(key)
        if parameter is not None:
            wide: Tensor = self.adapters[key](parameter) if key in self.adapters else parameter
            return wide.to(self._dtypes[name])
        constant = self._buffers[key]
        assert constant is not None  # every name was given a tensor
        return constant

    def parameter(self, name: str) -> nn.Parameter | None:
        """What is trained for a name, in float32 where the program stores less; None for a constant."""
        return self._parameters.get(self._keys[name])

    def adapt(self, makers: Mapping[str, Callable[[nn.Parameter], LowRank]]) -> None:
        """Freeze every parameter, and let adapters be trained in the place of some.

        Args:
            makers: by name of the tensor; called with its parameter. Names that share a parameter share the first's.
        """
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        for name, maker in makers.items():
            key = self._keys[name]
            if key not in self.adapters:
                self.adapters[key] = maker(self.get_parameter(key))

    def merge(self) -> None:
        """Put what the adapters make of parameters into these, rounded once, and train all again."""
        dtypes = {key: self._dtypes[name] for name, key in self._keys.items() if name in self._dtypes}
        with torch.no_grad():
            for key in self.adapters:
                # Rounded to what is stored; the parameter, which is no narrower, holds that exactly.
                self.get_parameter(key).copy_(self._merged(key).to(dtypes[key]))
        self.adapters = nn.ModuleDict()
        for parameter in self.parameters():
            parameter.requires_grad_(True)

    def trained(self) -> dict[str, Tensor]:
        """Copies of the trained tensors by name, in the dtypes that are stored; a shared one is one tensor."""
        copies: dict[str, Tensor] = {}
        found: dict[str, Tensor] = {}
        for name in self._dtypes:
            key = self._keys[name]
            if key not in copies:
                copies[key] = self._merged(key).to(self._dtypes[name], copy=True)
            found[name] = copies[key]
        return found

    def _merged(self, key: str) -> Tensor:
        """The parameter with what its adapter adds, if it has one."""
        parameter = self.get_parameter(key).detach()
        if key not in self.adapters:
            return parameter
        adapter = self.adapters[key]
        assert isinstance(adapter, LowRank)
        return adapter.merged(parameter)
