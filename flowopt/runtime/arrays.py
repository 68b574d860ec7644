"""Whether numpy arrays are what a model takes: the checks of ``Interface.bind`` where there is no torch."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from flowopt.errors import UserError
from flowopt.runtime.relax_metadata import numpy_dtype


def require_fitting(
    arrays: Mapping[str, np.ndarray], specs: Mapping[str, Mapping[str, Any]], dims: Mapping[str, Mapping[str, Any]]
) -> None:
    """Refuse arrays that do not fit.

    Args:
        arrays: by the input's name.
        specs: of every input, as an interface's JSON has them.
        dims: range of each free dimension, likewise.

    Raises:
        UserError: a dtype, rank or size is not what the model takes, or a dimension has two sizes.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for name, array in arrays.items():
        spec = specs[name]
        fits = array.ndim == len(spec["shape"]) and all(
            isinstance(wanted, str) or wanted == size for wanted, size in zip(spec["shape"], array.shape, strict=True)
        )
        if array.dtype != numpy_dtype(spec["dtype"]) or not fits:
            raise UserError(
                f"input {name!r} is {array.dtype}{list(array.shape)}, but the model takes {described_input(spec)}"
            )
        for dimension, size in zip(spec["shape"], array.shape, strict=True):
            # Derived sizes, such as 2*batch, are left to the library.
            if dimension not in dims:
                continue
            known, where = sizes.setdefault(dimension, (size, name))
            if known != size:
                raise UserError(f"dimension {dimension!r} is {known} in {where!r} and {size} in {name!r}")
            low, high = dims[dimension]["minimum"], dims[dimension]["maximum"]
            if size < low or (high is not None and size > high):
                limits = f"{low} to {high}" if high is not None else f"{low} or more"
                raise UserError(f"dimension {dimension!r} is {size} in {name!r}, but the model takes {limits}")


def described_input(spec: Mapping[str, Any]) -> str:
    """``ids: int64[batch, 128]``."""
    return f"{spec['name']}: {spec['dtype']}[{', '.join(map(str, spec['shape']))}]"
