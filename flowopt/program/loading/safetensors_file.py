"""Read a ``.safetensors`` file of an unknown author."""

from pathlib import Path
from typing import Final

from torch import Tensor

from flowopt.errors import MalformedModel
from flowopt.formats.limits import DEFAULT_LIMITS, Limits
from flowopt.formats.printable import printable
from flowopt.formats.safetensors_header import read_header

_MOST_NAME: Final = 110
_MOST_WHY: Final = 200


def read_safetensors(path: Path, limits: Limits = DEFAULT_LIMITS) -> dict[str, Tensor]:
    """Every tensor by name, mapped from the file.

    Raises:
        MalformedModel: it is damaged, or holds a dtype that torch lacks.
        OSError: it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    read_header(path, limits)
    try:
        return load_file(path)
    except SafetensorError as error:
        # A dtype that torch lacks, sizes whose product has more than 64 bits, or a path that is no UTF-8.
        raise MalformedModel(
            f"{printable(path.name, _MOST_NAME)} cannot be read",
            why=f"safetensors says: {printable(str(error), _MOST_WHY)}",
            hint="give it a plain name, or save it again with safetensors.torch.save_file and a dtype of torch",
        ) from error
