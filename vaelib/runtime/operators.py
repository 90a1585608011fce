"""The operators of ONNX's standard domain that vaelib runs, and those that it does not.

This is the only list: ``vaelib.export_onnx`` opens each bundle with this runtime before it writes it.
"""

from __future__ import annotations

__all__ = ["OTHERS", "REFUSED", "SIZES", "STEADY"]

STEADY = frozenset(
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
