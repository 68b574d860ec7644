"""Open what a user names as data."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from flowopt.errors import UserError
from flowopt.formats.printable import printable
from flowopt.program.interface import Interface
from flowopt.program.loading.imported import IMPORTED_NAME, called, imported_function
from flowopt.recovery.data.array_files import array_files, read_arrays
from flowopt.recovery.data.batch import Batch
from flowopt.recovery.data.data import Data
from flowopt.recovery.data.fitting import Fitting
from flowopt.recovery.data.shards import Shard, Shards
from flowopt.recovery.data.source import Source
from flowopt.recovery.data.stream import Stream

Arrays = str | Path | Mapping[str, Any] | Iterable[Any] | Callable[[], Any]
_MOST_NAME: Final = 200
_RETURNS: Final = "a list or a generator of batches: dictionaries, or tuples, of arrays"
_BRIEF: Final = "a generator of dictionaries of arrays by input name"


def open_data(
    source: Arrays,
    interface: Interface,
    *,
    batch_size: int | None = None,
    held_out: float | Arrays = 0.1,
    validation: float = 0.0,
    seed: int = 0,
    most: int | None = None,
) -> Data:
    """Open and check data: the whole of files, which are read once, and the first batch of a stream.

    Args:
        source: a ``.npz`` or ``.safetensors`` file, a folder of them (read one after another), arrays by name, an
            iterable of batches, a function that returns one, or ``package.module:factory``, such a function by name,
            which is imported and called: that runs its code. A function is called for each epoch, and gives the
            same batches in the same order. A batch is a mapping of arrays by name, or a tuple in the order of the
            inputs with or without labels at its end.
        interface: of the model. Arrays with an input's name are inputs; all others are passed along.
        batch_size: samples in a batch. Left out, files give 32, or what the model takes, and streams give batches as
            they come.
        held_out: fraction that training does not see, 0 to 1: of files a draw of samples, of streams every k-th
            batch; or a second source, which is held out whole.
        validation: fraction of what is left, 0 to below 0.5, that a training chooses its best state by; without it
            what is held out serves for that too, and is no longer unseen.
        seed: of the draw and of every order, 0 or more.
        most: samples to use, of both parts together; a stream that never ends needs it.

    Raises:
        ModelNotFound: no such file, folder, module or function.
        MalformedModel: a damaged file.
        UserError: no data, or data that does not fit; the message says which array, where, and what fits.
    """
    if seed < 0 or (most is not None and most < 1):
        raise UserError(f"seed={seed}, most={most}: the seed is 0 or more, and most 1 or more")
    if isinstance(held_out, bool) or (isinstance(held_out, int | float) and not 0 <= held_out < 1):
        raise UserError(f"held_out={held_out} is a fraction from 0 to below 1, or data of its own", hint="such as 0.1")
    if not 0 <= validation < 0.5:
        raise UserError(f"validation={validation} is a fraction from 0 to below 0.5")
    fitting = Fitting(interface)
    open_one = partial(_opened, fitting=fitting, batch_size=batch_size, seed=seed)
    if isinstance(held_out, int | float):
        opened = open_one(source, held_out=held_out, validation=validation, most=most)
        return Data(opened, opened if held_out else None, fitting.axis)
    seen = open_one(source, held_out=0.0, validation=validation, most=most)
    return Data(seen, open_one(held_out, held_out=1.0, validation=0.0, most=None), fitting.axis)


def _opened(
    source: Arrays,
    *,
    fitting: Fitting,
    batch_size: int | None,
    held_out: float,
    validation: float,
    seed: int,
    most: int | None,
) -> Source:
    name, walked = _named(source)
    parts: dict[str, Any] = {"held_out": held_out, "validation": validation, "seed": seed, "most": most}
    if isinstance(walked, list | Mapping):
        shards = list(_shards(name, walked, fitting))
        return Shards(name, shards, batch_size, fitting.axis, **parts)
    stream = Stream(name, walked, fitting, batch_size, **parts)
    stream.require_first()
    return stream


def _named(source: Arrays) -> tuple[str, list[Path] | Mapping[str, Any] | Callable[[], Any]]:
    """What messages call it, and the files, the arrays, or what gives batches."""
    if isinstance(source, str | Path):
        text = str(source)
        if not Path(source).exists() and IMPORTED_NAME.fullmatch(text):
            function = imported_function(text, _RETURNS, _BRIEF)
            return text, _arrays_or(text, function)
        return printable(text, _MOST_NAME), array_files(Path(source))
    if isinstance(source, Mapping):
        return "the data", source
    if isinstance(source, Iterator):
        raise UserError(
            f"the data is {type(source).__name__}, which can be walked only once",
            hint="give the function that makes it: it is called again for each epoch",
        )
    if callable(source):
        name = getattr(source, "__name__", type(source).__name__)
        return name, _arrays_or(name, source)
    if isinstance(source, Iterable):
        return "the data", lambda: source
    raise UserError(f"the data is {type(source).__name__}", hint="give a file, a folder, arrays by name, or batches")


def _arrays_or(name: str, function: Callable[[], Any]) -> Mapping[str, Any] | Callable[[], Any]:
    """The arrays that a function returns at once, or else the function, whose result is walked."""
    made = called(name, function)
    return made if isinstance(made, Mapping) else function


def _shards(name: str, walked: list[Path] | Mapping[str, Any], fitting: Fitting) -> Iterator[Shard]:
    if isinstance(walked, Mapping):
        yield _in_memory(fitting.batch(name, walked))
        return
    for path in walked:
        shown = printable(path.name, _MOST_NAME)
        batch = fitting.batch(shown, read_arrays(path))
        if len(walked) == 1:
            yield _in_memory(batch)
        else:
            yield Shard(partial(_from_file, path, shown, fitting), batch.samples, batch.sizes)


def _in_memory(batch: Batch) -> Shard:
    return Shard(lambda: batch, batch.samples, batch.sizes)


def _from_file(path: Path, shown: str, fitting: Fitting) -> Batch:
    return fitting.batch(shown, read_arrays(path))
