"""The attributes that operators may have, and the bounds of their values.

Bounds are for what onnxruntime does not survive, such as a stride of zero, or what would make an output enormous.
"""

from __future__ import annotations

import math
import re
from typing import Any

__all__ = ["TENSOR", "VALUE_OF", "allowed"]

# onnx.AttributeProto.AttributeType; of the other types, graphs among them, the reader knows no field
_FLOAT, _INT, _STRING, TENSOR, _FLOATS, _INTS, _STRINGS = 1, 2, 3, 4, 6, 7, 8
VALUE_OF = {_FLOAT: "f", _INT: "i", _STRING: "s", TENSOR: "t", _FLOATS: "floats", _INTS: "ints", _STRINGS: "strings"}
_FLOAT_ATTRIBUTES = frozenset(
    """
    alpha beta bias clip cubic_coeff_a epsilon extrapolation_value gamma lambd momentum scale softcap spatial_scale
    value_float
    """.split()  # noqa: SIM905
)
_FLOAT_LISTS = ("activation_alpha", "activation_beta", "value_floats")
_ACTIVATIONS = frozenset(
    "Affine Elu HardSigmoid LeakyRelu Relu ScaledTanh Sigmoid Softplus Softsign Tanh ThresholdedRelu".split()  # noqa: SIM905
)
_STRING_ATTRIBUTES = {
    "activations": _ACTIVATIONS,
    "approximate": ("none", "tanh"),
    "auto_pad": ("NOTSET",),
    "coordinate_transformation_mode": (
        "asymmetric",
        "half_pixel",
        "pytorch_half_pixel",
        "align_corners",
        "half_pixel_symmetric",
    ),
    "direction": ("forward", "reverse", "bidirectional", "LEFT", "RIGHT"),
    "keep_aspect_ratio_policy": ("stretch",),
    "mode": ("nearest", "linear", "cubic", "constant", "reflect", "edge", "wrap", "DCR", "CRD", "bilinear", "bicubic"),
    "nearest_mode": ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"),
    "padding_mode": ("zeros", "border", "reflection"),
    "reduction": ("none", "add", "mul", "max", "min"),
}
_EQUATION = re.compile(r"[A-Za-z.,\->\s]{1,200}")
_FLAGS = frozenset(
    """
    align_corners allowzero antialias ceil_mode count_include_pad detect_negative detect_positive exclude_outside
    exclusive fmod input_forget interleaved inverse is_causal keepdims largest layout linear_before_reset
    noop_with_empty_axes onesided periodic reverse saturate select_last_index sorted stash_type storage_order transA
    transB upper
    """.split()  # noqa: SIM905
)
_INT_ATTRIBUTES = dict.fromkeys(_FLAGS, (0, 1)) | {
    "axes": (-8, 8),
    "axis": (-8, 8),
    "batch_axis": (0, 8),
    "batch_dims": (0, 8),
    "block_size": (0, 4096),
    "blocksize": (1, 64),
    "dilations": (1, 64),
    "dtype": (1, 16),
    "end": (-8, 8),
    "group": (1, 2**16),
    "hidden_size": (1, 2**16),
    "k": (-(2**16), 2**16),
    "kernel_shape": (1, 1024),
    "kv_num_heads": (1, 4096),
    "num_groups": (1, 2**16),
    "num_heads": (1, 4096),
    "num_outputs": (1, 64),
    "offset_group": (1, 2**16),
    "output_datatype": (1, 16),
    "output_dtype": (0, 32),
    "output_padding": (0, 64),
    "p": (1, 64),
    "pads": (0, 1024),
    "perm": (0, 8),
    "q_num_heads": (1, 4096),
    "qk_matmul_output_mode": (0, 3),
    "rotary_embedding_dim": (0, 2**16),
    "size": (1, 1024),
    "softmax_precision": (1, 16),
    "start": (-8, 8),
    "strides": (1, 64),
    "time_axis": (0, 8),
    "to": (1, 16),
    "training_mode": (0, 0),
    "value_int": (-(2**31), 2**31),
    "value_ints": (-(2**31), 2**31),
}


def allowed(operator: str, name: str, kind: int, value: Any) -> bool:
    """Whether an operator may have this attribute; the values of a tensor are not looked at."""
    values = value if kind in (_FLOATS, _INTS, _STRINGS) else [value]
    if kind in (_INT, _INTS) and name in _INT_ATTRIBUTES:
        low, high = _INT_ATTRIBUTES[name]
        return all(low <= number <= high for number in values)
    if kind == _STRING and (operator, name) == ("Einsum", "equation"):
        return _EQUATION.fullmatch(value) is not None
    if kind in (_STRING, _STRINGS):
        return all(text in _STRING_ATTRIBUTES.get(name, ()) for text in values)
    if name in (_FLOAT_ATTRIBUTES if kind == _FLOAT else _FLOAT_LISTS if kind == _FLOATS else ()):
        return all(math.isfinite(number) for number in values)
    return kind == TENSOR and bool(value) and operator in ("Constant", "ConstantOfShape") and name == "value"
