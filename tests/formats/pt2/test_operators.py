import pytest

from flowopt.errors import Untrusted
from flowopt.formats.pt2.operators import clean_operator


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.linear.default",
        "torch.ops.aten.add.Tensor",
        "torch.ops.aten.__and__.Tensor",
        "torch.ops.aten._assert_scalar.default",
        "torch.ops.prims.convert_element_type.default",
        "torch.ops.higher_order.wrap_with_set_grad_enabled",
        "torch.sym_max",
        "_operator.getitem",
        "math.ceil",
    ],
)
def test_what_export_writes_is_kept_as_it_is(target: str) -> None:
    assert clean_operator(target, "here") == target


@pytest.mark.parametrize(
    "target",
    [
        "",
        "linear",
        "torch.load",
        "torch.ops.aten",
        "torch.ops.aten.linear.default.__class__",
        "torch.ops.aten.linear.__class__",
        "torch.ops.aten.__class__",
        "torch.ops.aten.__init__.default",
        "torch.ops.aten.save.default",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.set_.source_Storage",
        "torch.ops.aten.resize_.default",
        "torch.ops.aten.linear.default\n",
        "torch.ops.aten.line\u00e4r.default",
        "torch.ops.higher_order.triton_kernel_wrapper_functional",
        "torch.ops.loaded_libraries",
        "_operator.attrgetter",
        "_operator.getitem.__self__",
        "math.ceil.__self__",
        "#triton:kernel",
    ],
)
def test_anything_else_is_refused(target: str) -> None:
    with pytest.raises(Untrusted, match="not an operator of a model") as caught:
        clean_operator(target, "here")
    assert caught.value.hint


@pytest.mark.parametrize(
    "name",
    ["_reshape_alias", "_convert_indices_from_csr_to_coo", "segment_reduce", "native_layer_norm_backward", "_ctc_loss"],
)
def test_a_kernel_that_trusts_its_numbers_is_refused(name: str) -> None:
    with pytest.raises(Untrusted, match="does not check where in memory") as caught:
        clean_operator(f"torch.ops.aten.{name}.default", "here")
    assert "factory" in caught.value.hint


@pytest.mark.parametrize("name", ["gelu_backward", "_fused_rms_norm", "_unsafe_view", "scaled_dot_product_attention"])
def test_one_that_checks_them_is_kept(name: str) -> None:
    assert clean_operator(f"torch.ops.aten.{name}.default", "here").endswith(f"{name}.default")


def test_a_custom_operator_is_named() -> None:
    with pytest.raises(Untrusted, match="the custom operator mylib::scale") as caught:
        clean_operator("torch.ops.mylib.scale.default", "here")
    assert "factory" in caught.value.hint
