"""The converter of every operator, by the operator's full name."""

from collections.abc import Callable
from typing import Any

from flowopt.lowering.tvm.importing.activations import ACTIVATIONS
from flowopt.lowering.tvm.importing.attention import ATTENTION
from flowopt.lowering.tvm.importing.convolution import CONVOLUTION
from flowopt.lowering.tvm.importing.creation import CREATION
from flowopt.lowering.tvm.importing.division import DIVISION
from flowopt.lowering.tvm.importing.elementwise import ELEMENTWISE
from flowopt.lowering.tvm.importing.extremes import EXTREMES
from flowopt.lowering.tvm.importing.grouped_products import GROUPED_PRODUCTS
from flowopt.lowering.tvm.importing.indexing import INDEXING
from flowopt.lowering.tvm.importing.layout import LAYOUT
from flowopt.lowering.tvm.importing.normalization import NORMALIZATION
from flowopt.lowering.tvm.importing.norms import NORMS
from flowopt.lowering.tvm.importing.ordering import ORDERING
from flowopt.lowering.tvm.importing.padding import PADDING
from flowopt.lowering.tvm.importing.pooling import POOLING
from flowopt.lowering.tvm.importing.powers import POWERS
from flowopt.lowering.tvm.importing.predicates import PREDICATES
from flowopt.lowering.tvm.importing.products import PRODUCTS
from flowopt.lowering.tvm.importing.reductions import REDUCTIONS
from flowopt.lowering.tvm.importing.repetition import REPETITION
from flowopt.lowering.tvm.importing.resizing import RESIZING
from flowopt.lowering.tvm.importing.slicing import SLICING

# ``converter(make, *arguments)``: the arguments of the operator in the order of its schema, defaults included.
CONVERTERS: dict[str, Callable[..., Any]] = {
    **ELEMENTWISE,
    **DIVISION,
    **POWERS,
    **PREDICATES,
    **ACTIVATIONS,
    **CREATION,
    **LAYOUT,
    **SLICING,
    **REPETITION,
    **PADDING,
    **INDEXING,
    **PRODUCTS,
    **ATTENTION,
    **GROUPED_PRODUCTS,
    **CONVOLUTION,
    **POOLING,
    **NORMALIZATION,
    **REDUCTIONS,
    **EXTREMES,
    **NORMS,
    **RESIZING,
    **ORDERING,
}
