"""The operators of ONNX's standard domain that vaelib runs, those that it does not, and the attributes they may have.

This is the only list: ``vaelib.export_onnx`` opens each bundle with this runtime before it writes it. Attributes have
bounds for what onnxruntime does not survive, such as a stride of zero, or what would make an output enormous.
"""

from __future__ import annotations

import math
import re
from typing import Any

__all__ = ["BATCH_INVARIANT", "OTHERS", "REFUSED", "SIZES", "TENSOR", "VALUE_OF", "allowed"]

BATCH_INVARIANT = frozenset(
    """
    Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Clip Concat ConstantOfShape Conv
    ConvTranspose DepthToSpace DequantizeLinear Div Equal Erf Exp Expand Flatten Floor Gather GatherElements Gelu
    Gemm GlobalAveragePool Greater GreaterOrEqual HardSigmoid HardSwish Identity InstanceNormalization
    LayerNormalization LeakyRelu Less LessOrEqual LogSoftmax MatMul Max Min Mod Mul Neg Not Or PRelu Pad
    QuantizeLinear Reciprocal Relu Reshape Resize Round Shape Sigmoid Sign Slice Softmax SpaceToDepth Split Sqrt
    Squeeze Sub Tanh Tile Transpose Trilu Unsqueeze Where
    """.split()  # noqa: SIM905
)
"""Batch-invariant to the last bit: exact arithmetic, moves, and the kernels of onnxruntime's own library, which compute
the last values of a vector like the others. ``tests/test_runtime_bits.py`` measures it."""
OTHERS = frozenset(
    """
    Acos Acosh AffineGrid Asin Asinh Atan Atanh Attention BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor
    BlackmanWindow CastLike Celu CenterCropPad Col2Im Compress Constant ConvInteger Cos Cosh CumSum DFT DeformConv
    Det DynamicQuantizeLinear Einsum Elu EyeLike GRU GatherND GlobalLpPool GlobalMaxPool GridSample
    GroupNormalization HammingWindow HannWindow Hardmax IsInf IsNaN LRN LSTM Log LpNormalization LpPool
    MatMulInteger MaxPool MaxRoiPool MaxUnpool Mean MeanVarianceNormalization MelWeightMatrix Mish
    NegativeLogLikelihoodLoss NonMaxSuppression NonZero OneHot Pow QLinearConv QLinearMatMul RMSNormalization RNN
    Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare ReverseSequence RoiAlign RotaryEmbedding ScatterElements ScatterND Selu Shrink Sin Sinh Size
    SoftmaxCrossEntropyLoss Softplus Softsign Sum Tan ThresholdedRelu TopK Xor
    """.split()  # noqa: SIM905
)
"""The rest of those that are run, among them Eigen's, which computes the last values of a vector, or those before an
aligned address, by another formula than the rest: graphs with one of them are run image by image."""

_RANDOM = "it draws random numbers"
_SUBGRAPH = "it holds a graph of its own, which may run for ever"
_TYPES = "it works on text, sequences or optional values, which no graph of images needs"
REFUSED = {
    **dict.fromkeys(("Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike"), _RANDOM),
    **dict.fromkeys(("RandomUniform", "RandomUniformLike"), _RANDOM),
    **dict.fromkeys(("If", "Loop", "Scan", "SequenceMap"), _SUBGRAPH),
    **dict.fromkeys(
        """
        ConcatFromSequence Optional OptionalGetElement OptionalHasElement RegexFullMatch SequenceAt SequenceConstruct
        SequenceEmpty SequenceErase SequenceInsert SequenceLength SplitToSequence StringConcat StringNormalizer
        StringSplit TfIdfVectorizer
        """.split(),  # noqa: SIM905
        _TYPES,
    ),
    "ImageDecoder": "it decodes image files",
    "Unique": "it ends the process where its input is empty",
    "STFT": "it ends the process where its frame step is 0",
}
"""Operator to the reason why it is not run."""

SIZES = {
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "DFT": (1,),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Tile": (1,),
    "TopK": (1,),
}
"""Operator to the places of those of its inputs that decide how large its output is."""

# onnx.AttributeProto.AttributeType; of the other types, graphs among them, the reader knows no field
_FLOAT, _INT, _STRING, TENSOR, _FLOATS, _INTS, _STRINGS = 1, 2, 3, 4, 6, 7, 8
VALUE_OF = {_FLOAT: "f", _INT: "i", _STRING: "s", TENSOR: "t", _FLOATS: "floats", _INTS: "ints", _STRINGS: "strings"}
_FLOAT_NAMES = """
    alpha beta bias clip cubic_coeff_a epsilon extrapolation_value gamma lambd momentum scale softcap spatial_scale
    value_float
"""
_FLOAT_LISTS = "activation_alpha activation_beta value_floats"
_TEXTS = {
    "activations": "Affine Elu HardSigmoid LeakyRelu Relu ScaledTanh Sigmoid Softplus Softsign Tanh ThresholdedRelu",
    "approximate": "none tanh",
    "auto_pad": "NOTSET",
    "coordinate_transformation_mode": "asymmetric half_pixel pytorch_half_pixel align_corners half_pixel_symmetric",
    "direction": "forward reverse bidirectional LEFT RIGHT",
    "keep_aspect_ratio_policy": "stretch",
    "mode": "nearest linear cubic constant reflect edge wrap DCR CRD bilinear bicubic",
    "nearest_mode": "floor ceil round_prefer_floor round_prefer_ceil",
    "padding_mode": "zeros border reflection",
    "reduction": "none add mul max min",
}
_EQUATION = re.compile(r"[A-Za-z.,\->\s]{1,200}")
_NAMES_OF_BOUNDS = {
    (0, 0): "training_mode",
    (0, 1): """
        align_corners allowzero antialias ceil_mode count_include_pad detect_negative detect_positive exclude_outside
        exclusive fmod input_forget interleaved inverse is_causal keepdims largest layout linear_before_reset
        noop_with_empty_axes onesided periodic reverse saturate select_last_index sorted stash_type storage_order transA
        transB upper
    """,
    (-8, 8): "axes axis end start",
    (0, 3): "qk_matmul_output_mode",
    (0, 8): "batch_axis batch_dims perm time_axis",
    (1, 16): "dtype output_datatype softmax_precision to",
    (1, 64): "blocksize dilations num_outputs p strides",
    (0, 64): "output_dtype output_padding",
    (0, 1024): "pads",
    (1, 1024): "kernel_shape size",
    (0, 2**16): "block_size rotary_embedding_dim",
    (1, 2**16): "group hidden_size kv_num_heads num_groups num_heads offset_group q_num_heads",
    (-(2**16), 2**16): "k",
    (-(2**31), 2**31): "value_int value_ints",
}
_BOUNDS = {name: bounds for bounds, names in _NAMES_OF_BOUNDS.items() for name in names.split()}


def allowed(operator: str, name: str, kind: int, value: Any) -> bool:
    """Whether an operator may have this attribute; the values of a tensor are not looked at."""
    values = value if kind in (_FLOATS, _INTS, _STRINGS) else [value]
    if kind in (_INT, _INTS) and name in _BOUNDS:
        low, high = _BOUNDS[name]
        return all(low <= number <= high for number in values)
    if kind == _STRING and (operator, name) == ("Einsum", "equation"):
        return _EQUATION.fullmatch(value) is not None
    if kind in (_STRING, _STRINGS):
        return all(text in _TEXTS.get(name, "").split() for text in values)
    if name in {_FLOAT: _FLOAT_NAMES, _FLOATS: _FLOAT_LISTS}.get(kind, "").split():
        return all(math.isfinite(number) for number in values)
    return kind == TENSOR and bool(value) and operator in ("Constant", "ConstantOfShape") and name == "value"
