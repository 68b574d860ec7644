"""The rule of products: what follows elementwise is computed on the tile, before it leaves the registers."""

from typing import Any

from tvm_ffi import structural_equal

from flowopt.lowering.tvm.cpu.tile import TILE, schedule_tile


def schedule_tiled(sch: Any, target: Any) -> bool:
    """Applies to a function with one product and a chain of elementwise blocks of its shape behind it."""
    blocks = sch.get_child_blocks(sch.get_sblock("root"))
    products = [block for block in blocks if TILE in sch.get(block).annotations]
    if len(products) != 1:
        return False
    (accumulators,) = products
    *between, output = [block for block in blocks if block is not accumulators]
    consumers = sch.get_consumers(accumulators)
    if len(consumers) != 1 or not structural_equal(_shape(sch, consumers[0]), _shape(sch, output)):
        return False
    for block in between:
        sch.compute_inline(block)
    schedule_tile(sch, accumulators, output)
    return True


def _shape(sch: Any, block: Any) -> Any:
    return sch.get(block).writes[0].source.shape
