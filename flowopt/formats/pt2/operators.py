"""Which operators a file may name.

torch finds an operator by walking attributes from ``torch``, ``operator`` or ``math``, so a name is a way to any
function that these modules can reach. Allowed are the ATen and prims operators of the dispatcher, the symbolic
arithmetic of export, and the control flow that export writes.
"""

import re
from typing import Final

from flowopt.errors import Untrusted
from flowopt.formats.printable import printable

_DISPATCHED: Final = re.compile(r"torch\.ops\.(aten|prims)\.([A-Za-z_]\w*)(\.[A-Za-z_]\w*)?", re.ASCII)
_CUSTOM: Final = re.compile(r"torch\.ops\.([A-Za-z_]\w*)\.([A-Za-z_]\w*)(\.[A-Za-z_]\w*)?")
# from_file maps and even creates files by name, save writes one; the others give a tensor memory that nobody checked,
# or act on the process. (rebuild also refuses names that only TorchScript's interpreter knows.)
_FORBIDDEN: Final = frozenset(
    "from_file save set set_ set_data data resize resize_ resize_as resize_as_ _resize_output _resize_output_ "
    "_copy_from_and_resize sparse_resize sparse_resize_ sparse_resize_and_clear sparse_resize_and_clear_ "
    "resize_as_sparse resize_as_sparse_ _nested_view_from_buffer _nested_view_from_buffer_copy "
    "_nested_view_from_jagged _nested_view_from_jagged_copy _sparse_coo_tensor_unsafe _sparse_csr_tensor_unsafe "
    "_sparse_csc_tensor_unsafe _sparse_bsr_tensor_unsafe _sparse_bsc_tensor_unsafe _sparse_compressed_tensor_unsafe "
    "_print warn record_stream manual_seed seed set_grad_enabled".split()
)
# Kernels that take sizes, offsets or indices for granted: with numbers that a file chooses they read and write beyond
# their tensors. Most gradients are among them; an archive of a model that is used needs few.
_UNCHECKED: Final = re.compile(
    r"_reshape_alias(_copy)?|_convert_indices_\w+|_?segment_reduce\w*|_?ctc_loss|_fused_(adam|adamw|sgd|adagrad)_?"
    r"|_sobol_\w+|_nested_\w+|_jagged_\w+|_padded_dense_\w+|_transform_bias_rescale_qkv|\w*_backward\w*"
)
_ELEMENTWISE_GRADIENTS: Final = frozenset(
    f"{name}_backward"
    for name in "tanh sigmoid threshold gelu silu mish elu softplus softshrink hardshrink hardtanh hardswish "
    "hardsigmoid leaky_relu logit".split()
)
_DUNDERS: Final = frozenset("__and__ __or__ __xor__ __lshift__ __rshift__ __iand__ __ior__ __ixor__".split())
_SYMBOLIC: Final = frozenset(
    "_operator.eq _operator.ne _operator.le _operator.ge _operator.lt _operator.gt _operator.neg _operator.pos "
    "_operator.mul _operator.add _operator.sub _operator.floordiv _operator.mod _operator.pow _operator.truediv "
    "_operator.and_ _operator.or_ _operator.getitem torch.sym_int torch.sym_float torch.sym_ite torch.sym_max "
    "torch.sym_min torch.sym_not torch.sym_sqrt torch.sym_sum torch._sym_sqrt torch._sym_log2 torch._sym_cos "
    "torch._sym_sin torch._sym_tan torch._sym_cosh torch._sym_sinh torch._sym_tanh torch._sym_asin torch._sym_acos "
    "torch._sym_atan math.trunc math.ceil math.floor".split()
)
_CONTROL_FLOW: Final = frozenset(
    f"torch.ops.higher_order.{n}"
    for n in "cond while_loop scan associative_scan map_impl wrap_with_set_grad_enabled wrap_with_autocast "
    "invoke_subgraph hints_wrapper flex_attention".split()
)


def clean_operator(target: str, where: str) -> str:
    """The operator's name, unchanged, when a file may name it.

    Raises:
        Untrusted: a custom operator, or something that is no operator.
    """
    if target in _SYMBOLIC or target in _CONTROL_FLOW:
        return target
    found = _DISPATCHED.fullmatch(target)
    # An overload that starts with two underscores would be an attribute of Python's.
    if found is not None and _is_allowed(found[2]) and not (found[3] or "").startswith(".__"):
        _require_checked(found[2], where)
        return target
    custom = _CUSTOM.fullmatch(target)
    if custom is not None and custom[1] not in ("aten", "prims", "higher_order"):
        raise Untrusted(
            f"the file calls the custom operator {printable(f'{custom[1]}::{custom[2]}')}",
            why=f"{where}: a custom operator is code of its own; flowopt runs those of torch",
            hint="name a factory that imports the library with the operator: flowopt optimize package.module:factory",
        )
    raise Untrusted(
        f"the file calls {printable(target)!r}, which is not an operator of a model",
        why=f"{where}: torch finds it by walking Python attributes, which can lead to any function",
        hint="do not load it: torch never writes such a name; ask for .safetensors or a new export",
    )


def _require_checked(name: str, where: str) -> None:
    if _UNCHECKED.fullmatch(name) and name not in _ELEMENTWISE_GRADIENTS:
        raise Untrusted(
            f"the file calls {printable(name)}, which does not check where in memory it reads and writes",
            why=f"{where}: with numbers of the file's choice it could crash or change this program",
            hint="name a factory that builds the model: flowopt optimize package.module:factory",
        )


def _is_allowed(name: str) -> bool:
    return name in _DUNDERS if name.startswith("__") else name not in _FORBIDDEN
