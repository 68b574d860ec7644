import pytest

from flowopt.errors import UserError
from flowopt.program.loading.input_spec import InputSpec, parse_input_spec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("1x3x224x224", InputSpec((1, 3, 224, 224), "float32")),
        ("7", InputSpec((7,), "float32")),
        ("0x3", InputSpec((0, 3), "float32")),
        ("scalar", InputSpec((), "float32")),
        ("scalar:float64", InputSpec((), "float64")),
        ("2x5:bfloat16", InputSpec((2, 5), "bfloat16")),
        ("1x128:int64", InputSpec((1, 128), "int64")),
        ("1x128:int64[0..30521]", InputSpec((1, 128), "int64", 0, 30521)),
        ("1x128[5..9]", InputSpec((1, 128), "int64", 5, 9)),
        ("4:int8[-3..-3]", InputSpec((4,), "int8", -3, -3)),
        ("1x128:bool", InputSpec((1, 128), "bool")),
        ("8:complex64", InputSpec((8,), "complex64")),
    ],
)
def test_sizes_dtype_and_range(text: str, spec: InputSpec) -> None:
    assert parse_input_spec("x", text) == spec


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is not understood"),
        ("1x", "is not understood"),
        ("1x-3", "is not understood"),
        ("1,3", "is not understood"),
        ("1X3", "is not understood"),
        ("batchx3", "is not understood"),
        ("1x3:", "is not understood"),
        ("1x3:int64[0-9]", "is not understood"),
        ("1x3:int64[0..]", "is not understood"),
        ("1x3 ", "is not understood"),
        ("1x3:float", "unknown dtype 'float'"),
        ("1x3:long", "unknown dtype 'long'"),
        ("1x3:int64[9..0]", "range 9..0 of 'ids' is empty"),
        ("1x3:float32[0..1]", "range 0..1 of 'ids' does not apply to float32"),
        ("1x3:bool[0..1]", "range 0..1 of 'ids' does not apply to bool"),
        ("65536x65536", "4,294,967,296 elements"),
    ],
)
def test_refuses_another_form_and_says_what_to_write(text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint.replace(".", "[.]")) as caught:
        parse_input_spec("ids", text)
    assert "ids" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("text", ["9:uint8[0..256]", "9:int8[-129..0]", "9:int32[0..2147483648]"])
def test_refuses_a_range_beyond_the_dtype(text: str) -> None:
    with pytest.raises(UserError, match="does not fit"):
        parse_input_spec("ids", text)
