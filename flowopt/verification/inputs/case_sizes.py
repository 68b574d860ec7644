"""Sizes of free dimensions at which rewrites have gone wrong."""

from collections.abc import Iterable, Iterator, Sequence

from flowopt.program.program import Dim

_PRIMES = (3, 5, 7, 11, 13, 17, 19, 23)
_SMALL_ODD = (3, 5, 7, 9)
# Odd, with divisors: what a split into 2, 4 or a prime number of parts gets wrong.
_ODD = (9, 15, 21, 25, 27, 33)
# What kernels work on at once, without a rest.
_TILES = (16, 32)
_MOST_TRIED = 64
_UNBOUNDED = 128
_LEAST_LONG = 17
_MOST_NAMED = 3


def within(dim: Dim, size: int) -> int:
    """The size of a dimension's range that is nearest to ``size``."""
    return max(dim.minimum, size if dim.maximum is None else min(size, dim.maximum))


def primes(dims: Iterable[Dim]) -> dict[str, int]:
    """A small prime for each dimension, all different; another size where the range has none of them."""
    return {d.name: within(d, _PRIMES[i % len(_PRIMES)]) for i, d in enumerate(dims)}


def longest(dim: Dim) -> int:
    """The maximum; of an unbounded dimension twice the traced size and one, 17 to 128, and above the traced size."""
    if dim.maximum is not None:
        return dim.maximum
    return max(_LEAST_LONG, min(2 * dim.traced + 1, _UNBOUNDED), dim.traced + 1)


def small_odd(dims: Sequence[Dim], turn: int = 0) -> dict[str, int]:
    """Odd sizes from 3 on that differ from dimension to dimension and from turn to turn, where the ranges allow it."""
    return {d.name: _odd(d, _SMALL_ODD[(i + turn) % len(_SMALL_ODD)]) for i, d in enumerate(dims)}


def size_cases(dims: Sequence[Dim]) -> Iterator[tuple[str, dict[str, int]]]:
    """Named sizes: every dimension takes 1 (or its minimum), 2, an odd size, those beside the traced one, 16 and 32.

    A case is named by the size of the first dimension; the others are one further in that order.
    """
    if not dims:
        return
    for index, dim in enumerate(dims):
        others = small_odd(dims, turn=index)
        yield f"minimum-{dim.name}", others | {dim.name: within(dim, 1)}
    names = ("two", "odd", "below", "above")
    for turn, name in enumerate(names):
        yield name, {d.name: _beside(d, i, names[(i + turn) % len(names)]) for i, d in enumerate(dims)}
    for turn, name in enumerate(("tiles", "tiles-turned")):
        yield name, {d.name: within(d, _TILES[(i + turn) % len(_TILES)]) for i, d in enumerate(dims)}


def named_sizes(dims: Sequence[Dim], numbers: Iterable[int]) -> Iterator[tuple[str, dict[str, int]]]:
    """Every dimension at numbers that sizes are divided by, and one more, with the others small; where it may be.

    Args:
        dims: the free dimensions.
        numbers: the smaller ones count first.
    """
    for dim in dims:
        for number in [n for n in sorted(numbers) if within(dim, n) == n and n > 1][:_MOST_NAMED]:
            for size in (number, number + 1):
                if within(dim, size) == size:
                    yield f"{size}-{dim.name}", small_odd(dims) | {dim.name: size}


def longest_cases(dims: Sequence[Dim]) -> Iterator[tuple[str, dict[str, int]]]:
    """Every dimension at its maximum with the others small, or at their least, then all of them."""
    small = {d.name: within(d, 2) for d in dims}
    for dim in dims:
        yield f"longest-{dim.name}", small | {dim.name: longest(dim)}
        if len(dims) > 1:
            yield f"longest-{dim.name}-alone", {d.name: within(d, 1) for d in dims} | {dim.name: longest(dim)}
    if len(dims) > 1:
        yield "joint-maximum", {d.name: longest(d) for d in dims}


def _beside(dim: Dim, index: int, name: str) -> int:
    if name == "two":
        return within(dim, 2)
    if name == "odd":
        return _odd_apart(dim, index)
    return within(dim, dim.traced + (1 if name == "above" else -1))


def _odd_apart(dim: Dim, index: int) -> int:
    """An odd size away from the traced one, with divisors; a prime where the case ``prime`` could not have one."""
    tried: Iterable[int] = _ODD[index:] + _ODD[:index]
    if within(dim, _PRIMES[0]) != _PRIMES[0]:
        tried = filter(_is_prime, range(dim.minimum, dim.minimum + _MOST_TRIED))
    beside = (dim.traced - 1, dim.traced, dim.traced + 1)
    free = (size for size in tried if within(dim, size) == size and size not in beside)
    return next(free, _odd(dim, dim.traced))


def _is_prime(size: int) -> bool:
    return size > 1 and all(size % divisor for divisor in range(2, int(size**0.5) + 1))


def _odd(dim: Dim, size: int) -> int:
    """An odd size near ``size`` where the range has one."""
    near = within(dim, size)
    return near if near % 2 == 1 else next((n for n in (near + 1, near - 1) if within(dim, n) == n), near)
