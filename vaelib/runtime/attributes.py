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
