"""How many output channels and pixels a convolution computes in one pass over its weights.

The sums of a tile stay in vector registers while they run. They take half of the registers: LLVM keeps pixels that the
next step reads again in the other half, and spills sums to the stack once there is no room for that (measured: 100
GFLOP/s of one core with 14 or 16 sums, 45 to 55 with 28).
"""

from dataclasses import dataclass

# What a step costs beside its multiply-adds, in multiply-adds of one register.
STEP_COST = 1.0
WEIGHT_COST = 0.5
PIXEL_COST = 0.1
MOST_VECTORS = 4
# A size that is unknown at build time is more often a multiple of 8 than of another width that fits.
FREE_WIDTH = 8


@dataclass(frozen=True, slots=True)
class Tile:
    """``channels`` output channels of ``height`` x ``width`` pixels; the last named along a vector is whole vectors."""

    channels: int
    height: int
    width: int


def channel_tile(
    channels: int, height: int | None, width: int | None, lanes: int, registers: int, whole_blocks: bool = False
) -> Tile:
    """The tile of the kernel whose vectors run over output channels: the one that does the least superfluous work.

    Args:
        channels: output channels of a group.
        height: rows of the output; None where they are free.
        width: columns of the output; None where they are free.
        lanes: values a register holds.
        registers: how many registers there are.
        whole_blocks: whether the channels of the tile must divide those of a group.
    """
    lanes = min(lanes, channels & -channels if whole_blocks else power_of_two_from(channels))
    costs: dict[Tile, float] = {}
    for vectors in range(1, MOST_VECTORS + 1):
        blocks = -(-channels // (vectors * lanes))
        if whole_blocks and channels % (vectors * lanes):
            continue
        for rows, columns in _pixel_shapes(height, width, registers // 2 // vectors):
            tiles = blocks * -(-(height or rows) // rows) * (-(-width // columns) if width else 1 / columns)
            pixels = rows * columns
            step = vectors * pixels + PIXEL_COST * pixels + WEIGHT_COST * vectors + STEP_COST
            costs[Tile(vectors * lanes, rows, columns)] = tiles * step
    return min(costs, key=lambda tile: costs[tile])


def row_tile(channels: int, height: int | None, width: int | None, lanes: int, registers: int) -> Tile:
    """The tile of the kernel whose vectors run along a row of pixels, and which computes all channels of a group.

    Arguments as of :func:`channel_tile`.
    """
    if width is None:
        columns = lanes
    elif width < lanes:
        columns = power_of_two_from(width)
    else:
        columns = min((lanes * vectors for vectors in (1, 2)), key=lambda n: (-(-width // n) * n, n))
    most_rows = max(1, registers // 2 // (channels * max(1, columns // lanes)))
    if height is None:
        return Tile(channels, 1, columns)
    # Rows that overlap are read once by a tile, so that tall tiles pay; ones that hang over the edge do not.
    rows = min(range(1, min(most_rows, height, 4) + 1), key=lambda n: (-(-height // n) * (n + 1), -n))
    return Tile(channels, rows, columns)


def power_of_two_from(value: int) -> int:
    """The least power of two that is not below a positive value."""
    return 1 << (value - 1).bit_length()


def _pixel_shapes(height: int | None, width: int | None, pixels: int) -> list[tuple[int, int]]:
    if width is None:
        return [(1, min(FREE_WIDTH, pixels))]
    shapes = [(1, columns) for columns in range(1, min(width, pixels) + 1)]
    if height is not None and width <= pixels:
        # Rows are taken together only where a whole row does not fill the tile.
        shapes += [(rows, width) for rows in range(2, min(pixels // width, height) + 1)]
    return shapes
