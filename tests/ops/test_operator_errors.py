"""Invalid nodes are refused when they are made, by a GraphError that names the fault and the node."""

from __future__ import annotations

import pytest

from qcompiler.errors import GraphError
from qcompiler.ir.attributes import Attribute
from qcompiler.ir.dims import symbol
from qcompiler.ir.graph import Graph, Module
from qcompiler.ir.registry import REQUIRED, Trait, known_ops
from qcompiler.ir.types import DType, QuantParams, Stage, TensorType
from qcompiler.quant.spec import QuantSpec

Attributes = dict[str, Attribute]


def f32(*shape: int) -> TensorType:
    return TensorType(DType.F32, shape)


def of(dtype: DType, *shape: int) -> TensorType:
    return TensorType(dtype, shape)


def i8(*shape: int) -> TensorType:
    return TensorType(DType.I8, shape)


def i32(*shape: int) -> TensorType:
    return TensorType(DType.I32, shape)


def i64(*shape: int) -> TensorType:
    return TensorType(DType.I64, shape)


X, KERNEL, CODES = f32(2, 4, 6, 7), f32(8, 4, 3, 3), i8(2, 4, 6, 7)
POOL: Attributes = {"kernel": (2, 2), "stride": (1, 1)}
FAKE = [X, f32(), i32()]
SINGLE: Attributes = {"mode": "single", "dtype": "i8"}
PRODUCT: Attributes = {**SINGLE, "product_multiplier": 2**30, "product_exponent": 0}
TABLE: Attributes = {"offset": -128, "function": "exp", "dtype": "i8"}
NORM: Attributes = {**SINGLE, "epsilon": 1, "fraction": 10}
GRADIENT: Attributes = {"spec": QuantSpec(8), "rounding": "nearest"}
INT_LINEAR = [i8(2, 4), i8(8, 4), i32(8)]

SOFTMAX: Attributes = {
    "axis": 1,
    "mode": "table",
    "numerator": 256,
    "shift": 0,
    "dtype": "i8",
    "qmin": None,
    "qmax": None,
}
LOG: Attributes = {"axis": 1, "multiplier": 2**24, "shift": 24, "rise": 0, "dtype": "i8"}
CASES: dict[str, tuple[str, list[TensorType], Attributes, str]] = {
    # convolutions
    "no stride": ("conv2d", [X, KERNEL], {"stride": (0, 1)}, "stride is .*at least 1"),
    "one stride for two axes": ("conv2d", [X, KERNEL], {"stride": (1,)}, "stride is .*2 integers"),
    "a fraction of a stride": ("conv2d", [X, KERNEL], {"stride": (1.5, 1)}, "stride is .*integers"),
    "no dilation": ("conv1d", [f32(1, 4, 5), f32(2, 4, 3)], {"dilation": (0,)}, "dilation is"),
    "padding below zero": ("conv2d", [X, KERNEL], {"padding": (-1, 0, 0, 0)}, "padding is .*at least 0"),
    "padding without ends": ("conv2d", [X, KERNEL], {"padding": (1, 1)}, "padding is .*4 integers"),
    "no groups": ("conv2d", [X, KERNEL], {"groups": 0}, "0 groups"),
    "groups that do not divide the output": ("conv2d", [X, f32(9, 2, 3, 3)], {"groups": 2}, "in 2 groups"),
    "another number of channels": ("conv3d", [f32(1, 3, 4, 4, 4), f32(2, 4, 1, 1, 1)], {}, "3 input channels"),
    "a kernel of another rank": ("conv2d", [X, f32(8, 4, 3)], {}, "4 dimensions each"),
    "an empty kernel": ("conv2d", [X, f32(8, 4, 0, 3)], {}, "known positive sizes"),
    "a kernel of unknown size": ("conv2d", [X, TensorType(DType.F32, (symbol("N"), 4, 3, 3))], {}, "known positive sizes"),
    "a kernel larger than the image": ("conv2d", [X, f32(8, 4, 7, 3)], {}, "does not fit into 6 elements"),
    "a bias of another length": ("conv2d", [X, KERNEL, f32(7)], {}, "the bias is"),
    "a kernel of another type": ("conv2d", [X, of(DType.F64, 8, 4, 3, 3)], {}, "one element type"),
    "an image of integers": ("conv2d", [i32(2, 4, 6, 7), i32(8, 4, 3, 3)], {}, "floating point"),
    "too many operands": ("conv2d", [X, KERNEL, f32(8), f32(8)], {}, "given 4 operands"),
    "an unknown attribute": ("conv2d", [X, KERNEL], {"strides": (1, 1)}, "no attribute 'strides'"),
    "output padding of a whole stride": ("conv_transpose2d", [X, f32(4, 3, 3, 3)], {"output_padding": (1, 0)}, "output_padding is"),
    "groups that do not divide the input": ("conv_transpose2d", [X, f32(4, 3, 3, 3)], {"groups": 3}, "3 groups"),
    "padding that leaves nothing": ("conv_transpose2d", [f32(1, 4, 1, 1), f32(4, 3, 3, 3)], {"padding": (2, 0)}, "empty output"),
    "rows that are no channels": ("conv_transpose1d", [f32(1, 4, 3), f32(3, 2, 1)], {}, "4 input channels"),
    # matrices
    "features that do not fit": ("linear", [f32(2, 3), f32(6, 4)], {}, r"\[..., in\] and \[out, in\]"),
    "a bias of a linear layer": ("linear", [f32(2, 4), f32(6, 4), f32(5)], {}, "the bias is"),
    "a weight of another type": ("linear", [f32(2, 4), of(DType.F64, 6, 4)], {}, "one element type"),
    "matrices that do not chain": ("matmul", [f32(2, 3), f32(4, 5)], {}, r"\[..., k, n\]"),
    "a vector in a matrix product": ("matmul", [f32(3), f32(3, 5)], {}, r"\[..., m, k\]"),
    "batches that do not broadcast": ("matmul", [f32(2, 3, 4), f32(3, 4, 5)], {}, "do not broadcast"),
    # element by element
    "sizes that do not broadcast": ("add", [X, f32(3)], {}, "do not broadcast"),
    "the larger of two grids": ("maximum", [CODES, TensorType(DType.I8, (2, 4, 6, 7), QuantParams((0.5,), (3,)))], {}, "one element type and one grid"),
    "two element types": ("mul", [X, of(DType.F64, 7)], {}, "one element type"),
    "a quotient of integers": ("div", [i32(2), i32(2)], {}, "floating point"),
    "an interval upside down": ("clamp", [X], {"min": 1.0, "max": 0.0}, "min <= max"),
    "an interval of NaN": ("clamp", [X], {"min": float("nan")}, "min <= max"),
    "an interval of words": ("clamp", [X], {"min": "low"}, "min is 'low'"),
    "a clamp of integers": ("clamp", [i32(2)], {"min": 0.0}, "floating point"),
    "limits for other channels": ("clamp_channels", [X, f32(4), f32(3)], {"axis": 1}, "for each index of an axis"),
    "limits along the batch": ("clamp_channels", [X, f32(2), f32(2)], {"axis": 0}, "an axis after the first"),
    "limits of another type": ("clamp_channels", [X, f32(4), of(DType.F64, 4)], {"axis": 1}, "one element type"),
    "limits of integers": ("clamp_channels", [X, i32(4), i32(4)], {"axis": 1}, "floating point"),
    "scales for other channels": ("scaled_unary", [X, f32(3)], {"function": "silu", "axis": 1}, "a scale for each index"),
    "scales along the batch": ("scaled_unary", [X, f32(2)], {"function": "silu", "axis": 0}, "an axis after the first"),
    "scales of another type": ("scaled_unary", [X, of(DType.F64, 4)], {"function": "silu", "axis": 1}, "one element type"),
    "scales of no function": ("scaled_unary", [X, f32(4)], {"function": "relu", "axis": 1}, "the function is 'relu'"),
    "a parameter too many": ("scaled_unary", [X, f32(4)], {"function": "silu", "parameters": (1.0,), "axis": 1}, "parameters of silu"),
    "a parameter too few": ("scaled_unary", [X, f32(4)], {"function": "elu", "axis": 1}, "('alpha',)"),
    "a function of integers": ("sigmoid", [i32(2)], {}, "real numbers"),
    "no probability": ("dropout", [X], {"p": 1.5}, "a probability"),
    "statistics of other channels": ("batch_norm", [X, f32(4), f32(4), f32(3), f32(4)], {}, "one number per channel"),
    # pooling
    "a window of one axis": ("max_pool2d", [X], {"kernel": (2,), "stride": (1, 1)}, "kernel is .*2 integers"),
    "an empty window": ("avg_pool2d", [X], {"kernel": (0, 2), "stride": (1, 1)}, "kernel is .*at least 1"),
    "a pooling that stands still": ("avg_pool2d", [X], {**POOL, "stride": (1, 0)}, "stride is"),
    "half a window of padding and more": ("max_pool2d", [X], {**POOL, "padding": (2, 0)}, "more than half the window"),
    "a pooled vector": ("max_pool2d", [f32(2, 4)], POOL, r"\[N, C, H, W\]"),
    "a window larger than the image": ("avg_pool2d", [X], {**POOL, "kernel": (7, 2)}, "does not fit"),
    "taps beside the image": ("max_pool2d", [f32(1, 1, 1, 4)], {**POOL, "padding": (1, 0), "dilation": (2, 1)}, "contains none of the 1 elements"),
    "a divisor of zero": ("avg_pool2d", [X], {**POOL, "divisor_override": 0}, "divisor_override is 0"),
    "an average of integers": ("avg_pool2d", [i32(1, 1, 4, 4)], POOL, "floating point"),
    "a mean over no axis": ("mean", [X], {"axes": ()}, "distinct axes from 0 to 3"),
    "a mean over one axis twice": ("mean", [X], {"axes": (1, 1)}, "distinct axes"),
    "a mean over an axis from the end": ("mean", [X], {"axes": (-1,)}, "distinct axes"),
    "a mean of integers": ("mean", [i32(2, 2)], {"axes": (0,)}, "floating point"),
    "an adaptive size of zero": ("adaptive_avg_pool2d", [X], {"output_size": (0, 2)}, "output size is"),
    "an unknown interpolation": ("resize", [X], {"size": (2, 2), "mode": "cubic"}, "the mode is 'cubic'"),
    # movement
    "another number of elements": ("reshape", [X], {"shape": (5, 5)}, "the same number of elements"),
    "axes that are no permutation": ("permute", [X], {"axes": (0, 1, 1, 3)}, "each of 0 to 3 once"),
    "parts of other sizes": ("concat", [X, f32(2, 4, 5, 7)], {"axis": 1}, "cannot be concatenated"),
    "parts of other ranks": ("concat", [X, f32(2, 4)], {"axis": 1}, "cannot be concatenated"),
    "an axis that is not there": ("concat", [X, X], {"axis": 4}, "the axis is 4"),
    "nothing to join": ("concat", [], {"axis": 0}, "given 0 operands"),
    "an empty slice": ("slice", [X], {"axis": 1, "start": 2, "stop": 2}, "a non-empty part"),
    "a slice backwards": ("slice", [X], {"axis": 1, "start": 0, "stop": 2, "step": -1}, "a non-empty part"),
    "no inputs in a block": ("expand_blocks", [i8(8, 4), of(DType.U8, 8, 4)], {"axis": 0, "block": 0}, "blocks of 0"),
    "factors for other blocks": ("expand_blocks", [i8(8, 4), of(DType.U8, 8, 3)], {"axis": 0, "block": 2}, "blocks of 2"),
    "blocks of a vector": ("expand_blocks", [i8(8), of(DType.U8, 8, 1)], {"axis": 0, "block": 2}, "along axis 0"),
    "a slice of the batch": ("slice", [TensorType(DType.F32, (symbol("N"), 4))], {"axis": 0, "start": 0, "stop": 1}, "known size"),
    "an index past the end": ("gather", [X], {"axis": 1, "indices": (0, 4)}, "the index 4 is given for an axis of size 4"),
    "an index from the end": ("gather", [X], {"axis": 1, "indices": (-1,)}, "the index -1"),
    "no index": ("gather", [X], {"axis": 1, "indices": ()}, "there are no indices"),
    "indices of the batch": ("gather", [TensorType(DType.F32, (symbol("N"), 4))], {"axis": 0, "indices": (0,)}, "known size"),
    "padding for some axes": ("pad", [X], {"pad": (1, 1)}, "2 amounts of padding"),
    "padding that cuts all": ("pad", [X], {"pad": (0, 0, -3, 0, 0, 0, -3, 0)}, "is empty"),
    # quantizers
    "no specification": ("fake_quantize", FAKE, {"spec": "s8"}, "a QuantSpec"),
    "an axis that the tensor lacks": ("fake_quantize", [X, f32(4), i32(4)], {"spec": QuantSpec(8, axis=4)}, "an axis from -4 to 3"),
    "scales of another length": ("fake_quantize", [X, f32(6), i32(6)], {"spec": QuantSpec(8, axis=1)}, "has a parameter"),
    "limits upside down": ("fake_quantize", FAKE, {"spec": QuantSpec(8), "qmin": 5, "qmax": 4}, r"limited to 5\.\.4"),
    "limits off the grid": ("fake_quantize", FAKE, {"spec": QuantSpec(8), "qmax": 200}, r"in -128\.\.127"),
    "a gradient without a specification": ("quantize_gradient", [X, f32(2)], {**GRADIENT, "spec": "s8"}, "a QuantSpec with one"),
    "a gradient with scales per channel": ("quantize_gradient", [X, f32(2)], {**GRADIENT, "spec": QuantSpec(8, axis=1)}, "with one"),
    "a rounding of a gradient": ("quantize_gradient", [X, f32(2)], {**GRADIENT, "rounding": "up"}, "the rounding is 'up'"),
    "a range of a gradient without ends": ("quantize_gradient", [X, f32(3)], GRADIENT, "its low and its high end"),
    "scales for another bias": ("fake_quantize_bias", [f32(4), f32(3)], {"rounding": "rne"}, "its scale"),
    "a rounding of a bias": ("fake_quantize_bias", [f32(4), f32(4)], {"rounding": "up"}, "the rounding is 'up'"),
    "scales of two lengths": ("scale_product", [f32(4), f32(3)], {}, "the scales are"),
    "a rounding of codes": ("quantize", [X], {"rounding": "up", "dtype": "i8"}, "one of rne"),
    "codes that are real": ("quantize", [X], {"rounding": "rne", "dtype": "f32"}, "an integer type"),
    "codes of no type": ("quantize", [X], {"rounding": "rne", "dtype": "i7"}, "'i7'"),
    "limits beyond the type": ("quantize", [X], {"rounding": "rne", "dtype": "u8", "qmin": -1}, r"in 0\.\.255"),
    "codes to quantize": ("quantize", [CODES], {"rounding": "rne", "dtype": "i8"}, "floating point"),
    "reals to dequantize": ("dequantize", [X], {}, "integers"),
    # integers
    "an unknown mode": ("int_linear", [*INT_LINEAR, i32(1), i8(1)], {**SINGLE, "mode": "triple"}, "one of single"),
    "a multiplier for other channels": ("int_linear", [*INT_LINEAR, i32(3), i8(3)], SINGLE, "1 or 8 elements"),
    "a multiplier without exponent": ("int_linear", [*INT_LINEAR, i32(1)], SINGLE, "i32 and i8 of 1"),
    "an exponent in float arithmetic": ("int_linear", [*INT_LINEAR, f32(1), i8(1)], {**SINGLE, "mode": "f32_rne"}, "f32 of 1"),
    "reals in an integer layer": ("int_linear", [f32(2, 4), i8(8, 4), i32(8), i32(1), i8(1)], SINGLE, "integers"),
    "an integer kernel too large": ("int_conv2d", [CODES, i8(8, 4, 7, 3), i32(8), i32(1), i8(1)], SINGLE, "does not fit"),
    "one multiplier per channel of a rescale": ("rescale", [CODES, i32(4), i8(4)], SINGLE, "1 or 1 elements"),
    "one multiplier per channel of a mean": ("int_mean", [CODES, i32(4), i8(4)], {**SINGLE, "axes": (2,)}, "1 or 1 elements"),
    "limits for other channels of a layer": ("int_linear", [*INT_LINEAR, i32(1), i8(1)], {**SINGLE, "qmin": (0, 1)}, r"qmin is \(0, 1\).*8 of them"),
    "a channel upside down": ("int_linear", [*INT_LINEAR, i32(1), i8(1)], {**SINGLE, "qmin": 4, "qmax": (9, 3, *[9] * 6)}, r"limited to 4\.\.3"),
    "limits per channel of a rescale": ("rescale", [CODES, i32(1), i8(1)], {**SINGLE, "qmax": (1, 2, 3, 4)}, "an integer"),
    "a clamp of codes along the batch": ("int_clamp", [CODES], {"axis": 0, "dtype": "i8"}, "1 to 3"),
    "limits of codes for other channels": ("int_clamp", [CODES], {"axis": 3, "dtype": "i8", "qmax": (1, 2)}, "7 of them"),
    "a clamp of real numbers": ("int_clamp", [X], {"axis": 1, "dtype": "i8"}, "integers"),
    "matrices of codes that do not chain": ("int_matmul", [i8(2, 3), i8(4, 5), i32(1), i8(1)], SINGLE, r"\[..., k, n\]"),
    "matrices of reals in an integer product": ("int_matmul", [f32(2, 3), i8(3, 5), i32(1), i8(1)], SINGLE, "integers"),
    "one multiplier per column": ("int_matmul", [i8(2, 3), i8(3, 5), i32(5), i8(5)], SINGLE, "1 or 1 elements"),
    "a softmax along no axis": ("softmax", [X], {"axis": 4}, "0 to 3"),
    "a mask of numbers": ("softmax", [X, X], {"axis": 1}, "booleans"),
    "a softmax of reals in integers": ("int_softmax", [X, i32(9)], SOFTMAX, "integers"),
    "a softmax of an unknown mode": ("int_softmax", [CODES, i32(9)], {**SOFTMAX, "mode": "half"}, "the mode is 'half'"),
    "a log_softmax of reals in integers": ("int_log_softmax", [X, i32(9), i32(257)], LOG, "integers"),
    "a log_softmax with other logarithms": ("int_log_softmax", [CODES, i32(9), i32(256)], LOG, "one axis of 257"),
    "a log_softmax along no axis": ("log_softmax", [X], {"axis": 4}, "the axis is 4"),
    "a softmax with a table of reals": ("int_softmax", [CODES, f32(9)], SOFTMAX, "the table is"),
    "a product of reals": ("int_mul", [X, X], PRODUCT, "integers"),
    "a product of an unknown mode": ("int_mul", [CODES, CODES], {**PRODUCT, "mode": "half"}, "the mode is 'half'"),
    "a table of another type": ("lookup", [CODES, of(DType.I16, 256)], TABLE, "the table is"),
    "a table of two axes": ("lookup", [CODES, i8(2, 128)], TABLE, "the table is"),
    "a table for other channels": ("lookup", [CODES, i8(5, 256)], {**TABLE, "axis": 1}, "along axis 1.*a row or row number per channel"),
    "rows for other channels": ("lookup", [CODES, i8(2, 256), i32(5)], {**TABLE, "axis": 1}, "or row number per channel"),
    "rows without an axis": ("lookup", [CODES, i8(256), i32(4)], TABLE, "or row number per channel"),
    "rows of real numbers": ("lookup", [CODES, i8(2, 256), f32(4)], {**TABLE, "axis": 1}, "integers"),
    "a table along no axis of the input": ("lookup", [CODES, i8(4, 256)], {**TABLE, "axis": 4}, "along axis 4"),
    "slopes for other channels": ("prelu", [X, f32(3)], {}, "one slope, or one per channel"),
    "a norm of another size": ("layer_norm", [X, f32(6), f32(6)], {}, "the last sizes of the input"),
    "a norm with another bias": ("layer_norm", [X, f32(7), f32(6)], {}, "the last sizes of the input"),
    "a norm below zero": ("layer_norm", [X, f32(7), f32(7)], {"eps": -1.0}, "eps is -1.0"),
    "an integer norm with real weights": ("int_layer_norm", [CODES, f32(7), i32(7), i32(1), i8(1)], NORM, "integers"),
    "an integer norm with narrow weights": ("int_layer_norm", [CODES, i8(7), i32(7), i32(1), i8(1)], NORM, "i16 and i32"),
    "an integer norm with too many bits": ("int_layer_norm", [CODES, of(DType.I16, 7), i32(7), i32(1), i8(1)], {**NORM, "fraction": 16}, "fraction 16"),
    "a norm with too many axes": ("layer_norm", [X, f32(7), f32(7)], {"dims": 5}, "for 5 axes"),
    "rows of a vector": ("embedding", [f32(4), i64(2)], {}, "a matrix"),
    "rows at real numbers": ("embedding", [f32(4, 3), f32(2)], {}, "integers of 32 or 64 bits"),
    "numbers in place of a mask": ("masked", [X, i64(7)], {}, "the mask is"),
    "a mask that does not broadcast": ("masked", [X, of(DType.BOOL, 2, 2, 4, 6, 7)], {}, "the mask is"),
    "an expansion of more than one element": ("expand", [X, X], {"shape": (2, 8, 6, 7)}, "repeated axes of one element"),
    "an unknown exact function": ("exact", [i64(2), i64(2)], {"compute": "power"}, "the function is 'power'"),
    "a sum of booleans": ("exact", [of(DType.BOOL, 2), of(DType.BOOL, 2)], {"compute": "add"}, "integers of 32 or 64 bits"),
    "a conjunction of numbers": ("exact", [i64(2), i64(2)], {"compute": "and"}, "booleans"),
    "a sum of two types": ("exact", [i64(2), i32(2)], {"compute": "add"}, "one element type"),
    "the opposite of a number": ("not", [i64(2)], {}, "booleans"),
    "a cast to real numbers": ("cast", [i64(2)], {"dtype": "f32"}, "bool, i32 or i64"),
    "a cast to nothing": ("cast", [i64(2)], {"dtype": "long"}, "the element type is 'long'"),
    "sums along no axis": ("cumsum", [i64(2)], {"axis": 1}, "the axis is 1"),
    "places along no axis": ("top_places", [X], {"axis": 4}, "along axis 4"),
    "more places than elements": ("top_places", [X], {"axis": 1, "count": 5}, "5 places of 4"),
    "places of booleans": ("top_places", [of(DType.BOOL, 2, 3)], {"axis": 1}, "numbers with one scale"),
    "elements at real numbers": ("take_along", [f32(4, 3), f32(4, 2)], {"axis": 1}, "integers of 32 or 64 bits"),
    "places of other rows": ("take_along", [f32(4, 3), i64(5, 2)], {"axis": 1}, "the places are"),
    "a conversion between integers": ("convert", [i64(2)], {"dtype": "i32"}, "real numbers from or to"),
    "a comparison of integers": ("compare", [i64(2), i64(2)], {"compute": "less"}, "floating point"),
    "a choice by numbers": ("select", [i64(2), f32(2), f32(2)], {}, "a boolean and two"),
    "a rounding of averages": ("int_avg_pool2d", [CODES], {**POOL, "rounding": "up", "dtype": "i8"}, "the rounding is 'up'"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_makes_no_sense_is_refused(case: str) -> None:
    op, types, attributes, message = CASES[case]
    definition = known_ops()[op]
    graph = Module().add(Graph(stage=sorted(definition.stages)[0]))
    values = [graph.add_input("x", type) for type in types]
    with pytest.raises(GraphError, match=message) as caught:
        graph.append(op, values, attributes, name="culprit")
    assert "%culprit" in str(caught.value)
    assert len(graph) == 0, "a refused node is not in the graph"


@pytest.mark.parametrize("op", [name for name, item in known_ops().items() if REQUIRED in item.attributes.values()])
def test_a_missing_attribute_is_named(op: str) -> None:
    definition = known_ops()[op]
    names = [name for name, default in definition.attributes.items() if default is REQUIRED]
    with pytest.raises(GraphError, match=f"{op} lacks the attribute '{names[0]}'"):
        definition.complete({}, "%node")
    given: Attributes = dict.fromkeys(names[:-1], 1)
    with pytest.raises(GraphError, match=f"lacks the attribute '{names[-1]}' .*%node"):
        definition.complete(given, "%node")


def test_every_operator_with_a_rule_of_its_own_is_refused_something() -> None:
    """Operators that cannot be wrong take any one tensor, or belong to a family whose first member is here."""
    free = {"relu", "identity", *(name for name, item in known_ops().items() if item.has(Trait.UNARY))}
    families = {
        "sub": "add",
        "minimum": "maximum",
        "int_add": "int_mul",
        "conv_transpose3d": "conv_transpose2d",
        "int_resample2d": "resize",
    }
    families |= {f"int_conv{kind}d": "int_conv2d" for kind in ("1", "3", "_transpose1", "_transpose2", "_transpose3")}
    refused = {case[0] for case in CASES.values()}
    ours = {n for n, item in known_ops().items() if not item.has(Trait.LEAF) and not n.startswith("test_")} - {
        "call",
        "custom",
    }
    assert {families.get(name, name) for name in ours - free} <= refused


def test_an_operator_of_another_stage_is_found_by_the_verifier() -> None:
    from qcompiler.ir.verify import verify

    graph = Module().add(Graph(stage=Stage.INTEGER))
    node = graph.append("relu", [graph.add_input("x", X)])
    graph.set_outputs([node.output])
    with pytest.raises(GraphError, match=r"relu is not legal at stage integer .*%relu"):
        verify(graph)
