"""The operators that a bundle's graph may hold: what each takes, which attributes it has, and how its shapes follow.

An operator that another kind of network needs is added here, with a rule for the shapes of its outputs in `elements`,
`shapes` or `layers`. Three kinds are left out for good: operators with subgraphs (Loop, If, Scan, SequenceMap), which
can run for ever; random ones (RandomNormal, Bernoulli, Multinomial, Dropout while training), whose answers differ from
run to run; and those whose output is as long as the data say (NonZero, Unique, Compress, NonMaxSuppression), whose
memory has no bound. Nothing needs text, sequences, or the operators of other domains than ONNX's own.
"""

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from splitveil.bundle.onnx import elements, layers, shapes
from splitveil.bundle.onnx.call import Rule


class Kind(Enum):
    """Types of attributes. There is none for graphs, types and sparse tensors."""

    FLOAT = "float"
    INT = "int"
    STRING = "text"
    TENSOR = "tensor"
    FLOATS = "floats"
    INTS = "ints"
    STRINGS = "texts"


class Operator(NamedTuple):
    """How an operator is used.

    Attributes:
        rule: from its inputs to shapes of its outputs.
        inputs, outputs: the least and the most that it has.
        attributes: by name.
        required: attributes without a default.
        since: the opset whose meaning it has here.
    """

    rule: Rule
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    attributes: Mapping[str, Kind]
    required: frozenset[str]
    since: int


MANY = 1000  # inputs or outputs of an operator that takes any number; a concatenation of 100 branches is a large one
_KINDS = {"f": Kind.FLOAT, "i": Kind.INT, "s": Kind.STRING, "t": Kind.TENSOR, "F": Kind.FLOATS, "I": Kind.INTS,
          "S": Kind.STRINGS}  # fmt: skip


def _op(
    rule: Rule, inputs: int | tuple[int, int] = 1, attributes: str = "", outputs: int | tuple[int, int] = 1,
    since: int = 1,
) -> Operator:  # fmt: skip
    """One; ``attributes`` is a list such as "axis:i! perm:I", with ! at what has no default."""
    pairs = dict(item.split(":") for item in attributes.split())
    return Operator(
        rule,
        inputs if isinstance(inputs, tuple) else (inputs, inputs),
        outputs if isinstance(outputs, tuple) else (outputs, outputs),
        {name: _KINDS[kind[0]] for name, kind in pairs.items()},
        frozenset(name for name, kind in pairs.items() if kind.endswith("!")),
        since,
    )


def _each(names: str, operator: Operator) -> dict[str, Operator]:
    """Several operators that are used alike."""
    return dict.fromkeys(names.split(), operator)


_ELEMENTWISE = {  # activations, and the formulas that people write in a forward()
    **_each("Abs Neg Sign Reciprocal Sqrt Exp Log Erf Floor Ceil Round Identity", _op(elements.same)),
    **_each("Sin Cos Tan Asin Acos Atan Sinh Cosh Tanh Asinh Acosh Atanh", _op(elements.same)),
    **_each("Relu Sigmoid HardSwish Softplus Softsign", _op(elements.same)),
    **_each("LeakyRelu Elu Celu ThresholdedRelu", _op(elements.same, attributes="alpha:f")),
    "Mish": _op(elements.same, since=18),
    "Selu": _op(elements.same, attributes="alpha:f gamma:f"),
    "HardSigmoid": _op(elements.same, attributes="alpha:f beta:f"),
    "Shrink": _op(elements.same, attributes="bias:f lambd:f"),
    "Clip": _op(elements.same, (1, 3)),
    "PRelu": _op(elements.prelu, 2),
    **_each("Softmax LogSoftmax", _op(elements.same, attributes="axis:i")),
    "Cast": _op(elements.cast, attributes="to:i!"),
    **_each("Not IsNaN", _op(elements.truth)),
    "IsInf": _op(elements.truth, attributes="detect_negative:i detect_positive:i"),
    **_each("Add Sub Mul Div Pow", _op(elements.broadcast, 2)),
    "Mod": _op(elements.broadcast, 2, "fmod:i"),
    **_each("Min Max Sum Mean", _op(elements.broadcast, (1, MANY))),
    **_each("And Or Xor Equal Greater GreaterOrEqual Less LessOrEqual", _op(elements.truth, 2)),
    "Where": _op(elements.where, 3),
}

_WINDOW = "auto_pad:s kernel_shape:I{} pads:I strides:I "
_RECURRENT = "activation_alpha:F activation_beta:F activations:S clip:f direction:s hidden_size:i layout:i "
_LAYERS = {  # what networks are made of; normalisation in evaluation mode only
    "MatMul": _op(layers.matmul, 2),
    "Gemm": _op(layers.gemm, (2, 3), "alpha:f beta:f transA:i transB:i"),
    "Einsum": _op(layers.einsum, (1, 8), "equation:s!"),
    "Conv": _op(layers.conv, (2, 3), _WINDOW.format("") + "dilations:I group:i"),
    "ConvTranspose": _op(
        layers.conv_transpose, (2, 3), _WINDOW.format("") + "dilations:I group:i output_padding:I output_shape:I"
    ),
    "AveragePool": _op(layers.pool, 1, _WINDOW.format("!") + "ceil_mode:i count_include_pad:i"),
    "MaxPool": _op(layers.pool, 1, _WINDOW.format("!") + "ceil_mode:i dilations:I storage_order:i", (1, 2)),
    "LpPool": _op(layers.pool, 1, _WINDOW.format("!") + "ceil_mode:i dilations:I p:i", since=18),
    "GlobalAveragePool": _op(layers.global_pool),
    "GlobalMaxPool": _op(layers.global_pool),
    "BatchNormalization": _op(layers.batch_norm, 5, "epsilon:f momentum:f training_mode:i"),
    "InstanceNormalization": _op(elements.same, 3, "epsilon:f"),
    "LayerNormalization": _op(elements.same, (2, 3), "axis:i epsilon:f stash_type:i", since=17),
    "LRN": _op(layers.local_norm, 1, "alpha:f beta:f bias:f size:i!"),
    "LpNormalization": _op(elements.same, 1, "axis:i p:i"),
    "RNN": _op(layers.recurrent(1), (3, 6), _RECURRENT, (1, 2)),
    "GRU": _op(layers.recurrent(3), (3, 6), _RECURRENT + "linear_before_reset:i", (1, 2)),
    "LSTM": _op(layers.recurrent(4), (3, 8), _RECURRENT + "input_forget:i", (1, 3)),
    "QuantizeLinear": _op(layers.quantize, (2, 3), "axis:i"),
    "DequantizeLinear": _op(layers.dequantize, (2, 3), "axis:i"),
}

_REDUCTIONS = {  # pooling over axes, digits by their largest score
    **_each(
        "ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSumExp ReduceSumSquare",
        _op(elements.reduce, (1, 2), "keepdims:i noop_with_empty_axes:i", since=18),
    ),
    "ReduceSum": _op(elements.reduce, (1, 2), "keepdims:i noop_with_empty_axes:i"),
    **_each("ArgMax ArgMin", _op(elements.arg_reduce, 1, "axis:i keepdims:i select_last_index:i")),
    "CumSum": _op(elements.same, 2, "exclusive:i reverse:i"),
    "TopK": _op(elements.top_k, 2, "axis:i largest:i sorted:i", 2),
}  # fmt: skip

_ARRANGEMENT = {  # moving, cutting and joining; shapes that are computed from the batch's length
    "Shape": _op(shapes.shape_of, 1, "end:i start:i"), "Size": _op(shapes.size_of),
    "Reshape": _op(shapes.reshape, 2, "allowzero:i"), "Flatten": _op(shapes.flatten, 1, "axis:i"),
    "Transpose": _op(shapes.transpose, 1, "perm:I"),
    "Squeeze": _op(shapes.squeeze, (1, 2)), "Unsqueeze": _op(shapes.unsqueeze, 2),
    "Concat": _op(shapes.concat, (1, MANY), "axis:i!"),
    "Split": _op(shapes.split, (1, 2), "axis:i num_outputs:i", (1, MANY), since=18),
    "Slice": _op(shapes.slice_, (3, 5)),
    "Gather": _op(shapes.gather, 2, "axis:i"), "GatherElements": _op(shapes.gather_elements, 2, "axis:i"),
    "GatherND": _op(shapes.gather_nd, 2, "batch_dims:i"),
    "ScatterElements": _op(elements.same, 3, "axis:i reduction:s", since=18),
    "ScatterND": _op(elements.same, 3, "reduction:s", since=18),
    "Expand": _op(shapes.expand, 2), "Tile": _op(shapes.tile, 2), "Pad": _op(shapes.pad, (2, 4), "mode:s", since=18),
    "DepthToSpace": _op(layers.depth_to_space, 1, "blocksize:i! mode:s"),
    "SpaceToDepth": _op(layers.space_to_depth, 1, "blocksize:i!"),
    "ConstantOfShape": _op(shapes.constant_of_shape, 1, "value:t"), "Range": _op(shapes.range_, 3),
    "EyeLike": _op(shapes.eye_like, 1, "dtype:i k:i"), "Trilu": _op(elements.same, (1, 2), "upper:i"),
    "OneHot": _op(shapes.one_hot, 3, "axis:i"),
    "Resize": _op(
        layers.resize, (1, 4), "antialias:i axes:I coordinate_transformation_mode:s cubic_coeff_a:f exclude_outside:i "
        "extrapolation_value:f keep_aspect_ratio_policy:s mode:s nearest_mode:s", since=18
    ),
    "GridSample": _op(layers.grid_sample, 2, "align_corners:i mode:s padding_mode:s", since=16),
    "Col2Im": _op(layers.col2im, 3, "dilations:I pads:I strides:I", since=18),
}  # fmt: skip

OPERATORS: Mapping[str, Operator] = {**_ELEMENTWISE, **_LAYERS, **_REDUCTIONS, **_ARRANGEMENT}
"""By name, of ONNX's own domain."""
