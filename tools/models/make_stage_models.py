#!/usr/bin/env python3
"""Makes tests/data/stages: one small network per stage type, compiled by the vendor's compiler, with reference outputs.

    python make_stage_models.py --compile COMPILE.SH --out tests/data/stages [NAME...]

Needs a Python with openvino (2025.4.1 was used; its CPU plugin computes the references in FP32) and COMPILE.SH, a
script that compiles an IR (.xml) to a .blob with OpenVINO 2021.4.2 and takes
    -m MODEL.xml -o OUT.blob [-ip U8|FP16|FP32|I32] [-op FP16|FP32] [-il NCHW|NHWC] [-b N] [-c KEY VALUE]...
Weights and inputs are random, seeded by the name of the network, and rounded to FP16 before anything is computed, so
that the reference and the compiled graph work on the same numbers. Written per network: NAME.blob, NAME.in.TENSOR.npy,
NAME.out.TENSOR.npy. A network that the compiler refuses is reported and leaves nothing behind.
"""
import argparse
import pathlib
import subprocess
import sys
import tempfile
import zlib

import numpy as np
import openvino as ov
from openvino import opset1 as o1, opset2 as o2, opset3 as o3, opset4 as o4, opset5 as o5, opset6 as o6
from openvino.op import tensor_iterator
from openvino.utils.node_factory import _get_node_factory
from openvino.utils.types import as_nodes

CASES = {}
rng = np.random.RandomState(0)


def case(function=None, **options):
    """Registers a network. Options: ip, op (precisions), args (further compiler arguments), inputs."""
    if function is None:
        return lambda f: case(f, **options)
    CASES[function.__name__] = (function, options)
    return function


def many(names, **options):
    """Registers a network for each name; the function takes what the name stands for."""

    def register(function):
        for name, value in names.items():
            CASES[name] = (lambda value=value: function(value), options)
        return function

    return register


def rand(*shape, scale=1.0, low=None, high=None):
    """Random numbers that FP16 holds exactly: normal, or even between low and high."""
    a = rng.uniform(low, high, shape) if low is not None else rng.randn(*shape) * scale
    return a.astype(np.float16).astype(np.float32)


def ints(*shape, high, low=0):
    return rng.randint(low, high, shape).astype(np.int32)


def const(a, dtype=np.float32):
    return o1.constant(np.asarray(a, dtype=dtype))


def vec(*values):
    return o1.constant(np.array(values, dtype=np.int32))


def indices(net, name, values):
    """An input of FP16 that the network turns to S32."""
    return o1.convert(net.input(name, values.astype(np.float32)), "i32")


class Net:
    """Inputs with their values, and outputs."""

    def __init__(self):
        self.parameters, self.values, self.results = [], {}, []

    def input(self, name, value):
        parameter = o1.parameter(list(value.shape), value.dtype, name=name)
        self.parameters.append(parameter)
        self.values[name] = value
        return parameter

    def output(self, *nodes):
        self.results += nodes
        return self


def unary(f, shape=(1, 6, 5, 7), scale=2.0, values=None):
    net = Net()
    x = net.input("data", rand(*shape, scale=scale) if values is None else values)
    y = f(x)
    y.set_friendly_name("out")
    return net.output(y)


def conv(x, oc, k, stride=(1, 1), pad=None, dilation=(1, 1), groups=1, bias=True):
    k = (k, k) if isinstance(k, int) else k
    pad = pad if pad is not None else [k[0] // 2, k[1] // 2]
    ic = x.get_output_shape(0)[1]
    scale = (2.0 / (ic // groups * k[0] * k[1])) ** 0.5
    if groups == 1:
        y = o1.convolution(x, const(rand(oc, ic, *k, scale=scale)), list(stride), pad, pad, list(dilation))
    else:
        w = rand(groups, oc // groups, ic // groups, *k, scale=scale)
        y = o1.group_convolution(x, const(w), list(stride), pad, pad, list(dilation))
    return o1.add(y, const(rand(1, oc, 1, 1, scale=0.2))) if bias else y


NOHW = ["-c", "MYRIAD_ENABLE_HW_ACCELERATION", "NO"]

# Functions of one element.
many({
    "relu": o1.relu,
    "leaky_relu": lambda x: o1.prelu(x, const([0.125])),
    "sigmoid": o1.sigmoid,
    "tanh": o1.tanh,
    "exp": o1.exp,
    "floor": o1.floor,
    "ceiling": o1.ceiling,
    "erf": o1.erf,
    "elu": lambda x: o1.elu(x, 0.75),
    "clamp": lambda x: o1.clamp(x, -0.5, 1.25),
    "swish": lambda x: o4.swish(x, const(1.5)),
    "hswish": o4.hswish,
    "softplus": o4.softplus,
    "mish": o4.mish,
    "gelu": lambda x: o2.gelu(x),
    "round_even": lambda x: o5.round(x, "half_to_even"),
    "round_away": lambda x: o5.round(x, "half_away_from_zero"),
    "grn": lambda x: o1.grn(x, 0.25),
    "power_linear": lambda x: o1.add(o1.multiply(x, const(0.75)), const(-0.5)),
    "negative": lambda x: o1.multiply(x, const(-1.0)),
    "prelu": lambda x: o1.prelu(x, const(rand(6))),
    "scale": lambda x: o1.multiply(x, const(rand(1, 6, 1, 1))),
    "bias": lambda x: o1.add(x, const(rand(1, 6, 1, 1))),
    "scale_shift": lambda x: o1.add(o1.multiply(x, const(rand(1, 6, 1, 1))), const(rand(1, 6, 1, 1))),
    "softmax_c": lambda x: o1.softmax(x, 1),
    "softmax_w": lambda x: o1.softmax(x, 3),
    "softmax_h": lambda x: o1.softmax(x, 2),
    "permute_nhwc": lambda x: o1.transpose(x, vec(0, 2, 3, 1)),
    "permute_wc": lambda x: o1.transpose(x, vec(0, 3, 2, 1)),
    "permute_hw": lambda x: o1.transpose(x, vec(0, 1, 3, 2)),
    "pad_constant": lambda x: o1.pad(x, vec(0, 1, 2, 3), vec(0, 2, 1, 0), "constant", const(0.5)),
    "pad_edge": lambda x: o1.pad(x, vec(0, 1, 2, 3), vec(0, 2, 1, 0), "edge"),
    "pad_reflect": lambda x: o1.pad(x, vec(0, 1, 2, 3), vec(0, 2, 1, 2), "reflect"),
    "pad_symmetric": lambda x: o1.pad(x, vec(0, 1, 2, 3), vec(0, 2, 1, 2), "symmetric"),
    "tile": lambda x: o1.tile(x, vec(1, 2, 1, 3)),
    "lrn": lambda x: o1.lrn(x, vec(1), alpha=0.5, beta=0.75, bias=1.5, size=3),
    "inner_lrn": lambda x: o1.lrn(x, vec(2, 3), alpha=0.5, beta=0.75, bias=1.0, size=3),
    "mvn_across": lambda x: o6.mvn(x, vec(1, 2, 3), True, 1e-3, "OUTSIDE_SQRT"),
    "mvn_mean": lambda x: o6.mvn(x, vec(2, 3), False, 1e-3, "OUTSIDE_SQRT"),
    "mvn_outside": lambda x: o6.mvn(x, vec(2, 3), True, 0.125, "OUTSIDE_SQRT"),

    "normalize_c": lambda x: o1.normalize_l2(x, vec(1), 1e-3, "add"),
    "normalize_chw": lambda x: o1.normalize_l2(x, vec(1, 2, 3), 1e-3, "add"),
    "normalize_scaled": lambda x: o1.multiply(o1.normalize_l2(x, vec(1), 1e-3, "max"), const(rand(1, 6, 1, 1))),
    "reduce_mean": lambda x: o1.reduce_mean(x, vec(1), True),
    "reduce_mean_cw": lambda x: o1.reduce_mean(x, vec(1, 3), False),
    "reduce_sum": lambda x: o1.reduce_sum(x, vec(1, 2), True),
    "reduce_sum_w": lambda x: o1.reduce_sum(x, vec(3), True),
    "reduce_sum_all": lambda x: o1.reduce_sum(x, vec(1, 2, 3), True),
    "reduce_max": lambda x: o1.reduce_max(x, vec(1, 3), False),
    "reduce_min": lambda x: o1.reduce_min(x, vec(2), True),
    "slice_steps": lambda x: o1.strided_slice(x, vec(0, 1, 0, 1), vec(1, 6, 5, 7), vec(1, 2, 2, 3), [0] * 4, [0] * 4),
    # Begin or end of these axes does not count: tells which way the masks are written.
    "slice_begin_mask": lambda x: o1.strided_slice(x, vec(0, 3, 2, 1), vec(1, 6, 5, 7), vec(1, 1, 2, 1), [0, 1, 0, 1], [0] * 4),
    "slice_end_mask": lambda x: o1.strided_slice(x, vec(0, 1, 0, 0), vec(1, 4, 3, 6), vec(1, 1, 2, 2), [0] * 4, [1, 0, 1, 0]),
    "slice_one_mask": lambda x: o1.strided_slice(x, vec(0, 3, 0, 0), vec(1, 6, 5, 7), vec(1, 1, 2, 1), [0, 1, 0, 0], [0] * 4),
    "slice_backwards": lambda x: o1.strided_slice(x, vec(0, 0, 0, 6), vec(1, 6, 5, 0), vec(1, 1, 1, -2), [1, 1, 1, 0], [1, 1, 1, 0]),
    "gather_c": lambda x: o1.gather(x, vec(3, 0, 5, 3), const(1, np.int64)),
    "gather_w": lambda x: o1.gather(x, vec(6, 1), const(3, np.int64)),
    "avg_pool": lambda x: o1.avg_pool(x, [2, 1], [1, 1], [1, 1], [3, 3], False),
    "interp_asymmetric_down": lambda x: interpolate(x, (3, 4), "linear_onnx", "asymmetric"),
})(lambda f: unary(f))

many({"log": o1.log, "sqrt": o1.sqrt, "power_half": lambda x: o1.power(o1.add(o1.multiply(x, const(2.0)), const(0.5)), const(0.75))})(
    lambda f: unary(f, values=rand(1, 6, 5, 7, low=0.125, high=4.0))
)


def interpolate(x, size, mode, coordinates, nearest="round_prefer_floor", antialias=False):
    attrs = {
        "mode": mode, "shape_calculation_mode": "sizes", "coordinate_transformation_mode": coordinates,
        "nearest_mode": nearest, "antialias": antialias, "pads_begin": [0] * 4, "pads_end": [0] * 4, "cube_coeff": -0.75,
    }
    h, w = x.get_output_shape(0)[2:]
    inputs = [x, vec(*size), const([size[0] / h, size[1] / w]), vec(2, 3)]
    return _get_node_factory("opset4").create("Interpolate", as_nodes(*inputs), attrs)


many({
    "resample_asymmetric_floor": ((10, 14), "nearest", "asymmetric", "floor"),
    "resample_half_ceil": ((8, 11), "nearest", "half_pixel", "round_prefer_ceil"),
    "resample_corners": ((9, 13), "nearest", "align_corners", "round_prefer_floor"),
    "resample_simple": ((3, 3), "nearest", "asymmetric", "simple"),
    "resample_tf": ((10, 14), "nearest", "tf_half_pixel_for_nn", "floor"),
    "interp_half_pixel": ((10, 14), "linear_onnx", "half_pixel"),
    "interp_align_corners": ((9, 13), "linear_onnx", "align_corners"),
    "interp_asymmetric": ((10, 14), "linear_onnx", "asymmetric"),
    "interp_pytorch": ((10, 1), "linear_onnx", "pytorch_half_pixel"),
    "interp_linear": ((10, 14), "linear", "half_pixel"),
    "interp_tf_width": ((5, 14), "linear_onnx", "tf_half_pixel_for_nn"),
    "interp_tf_height": ((10, 7), "linear_onnx", "tf_half_pixel_for_nn"),
    "interp_tf": ((10, 14), "linear_onnx", "tf_half_pixel_for_nn"),
    "resample_tf_width": ((5, 14), "nearest", "tf_half_pixel_for_nn", "ceil"),
})(lambda p: unary(lambda x: interpolate(x, *p)))


# Functions of two elements. The first shape is broadcast in the second of each pair.
def binary(f, a=(1, 4, 3, 5), b=(1, 4, 3, 5), values=None):
    net = Net()
    x, y = values or (rand(*a), rand(*b))
    out = f(net.input("a", x), net.input("b", y))
    out.set_friendly_name("out")
    return net.output(out)


many({
    "sum": o1.add, "prod": o1.multiply, "max": o1.maximum, "min": o1.minimum, "subtract": o1.subtract,
    "squared_difference": o1.squared_difference,
    "sum_relu": lambda a, b: o1.relu(o1.add(a, b)),
    "prod_leaky": lambda a, b: o1.prelu(o1.multiply(a, b), const([0.25])),
    "max_clamp": lambda a, b: o1.clamp(o1.maximum(a, b), -0.25, 0.75),
})(lambda f: binary(f))
many({"sum_broadcast": o1.add, "prod_broadcast": o1.multiply, "greater_broadcast": lambda a, b: o1.convert(o1.greater(a, b), "f32")})(
    lambda f: binary(f, (1, 4, 3, 5), (1, 4, 1, 1))
)
# Operands of fewer dimensions lie along the last ones; the compiler calls the one of a vector C.
KEEP_BATCH = ["-c", "MYRIAD_DETECT_NETWORK_BATCH", "NO"]
many({
    "sum_vector": ((1, 9, 7, 9), (9,)),
    "sum_vector_w": ((1, 5, 7, 9), (9,)),
    "sum_vector_chw": ((3, 9, 9), (9,)),
    "sum_vector_first": ((9,), (1, 9, 7, 9)),
    "sum_matrix": ((5, 5, 5, 5), (5, 5)),
    "sum_matrix_h": ((3, 7, 7, 7), (7, 1)),
    "sum_planes": ((2, 5, 7, 5), (5, 1, 5)),
    "sum_planes_5d": ((1, 5, 5, 5, 5), (5, 5, 1, 5)),
    "sum_vector_nc": ((4, 9), (9,)),
}, args=KEEP_BATCH)(lambda shapes: binary(o1.add, *shapes))


def layer_norm(x, axis, size):
    centred = o1.subtract(x, o1.reduce_mean(x, vec(axis), True))
    variance = o1.reduce_mean(o1.multiply(centred, centred), vec(axis), True)
    normal = o1.divide(centred, o1.sqrt(o1.add(variance, const(1e-3))))
    return o1.add(o1.multiply(normal, const(rand(size))), const(rand(size)))


many({"layer_norm": (1, 10, 12), "layer_norm_square": (1, 12, 12)})(
    lambda shape: unary(lambda x: layer_norm(x, 2, shape[2]), shape=shape)
)
many({"div": o1.divide, "pow": o1.power, "floor_mod": o1.floor_mod})(
    lambda f: binary(f, values=(rand(1, 4, 3, 5, low=0.5, high=4.0), rand(1, 4, 3, 5, low=0.5, high=2.0)))
)


def whole(*shape, high=3):
    return ints(*shape, high=high).astype(np.float32)


many({
    "equal": o1.equal, "not_equal": o1.not_equal, "greater": o1.greater, "greater_equal": o1.greater_equal,
    "less": o1.less, "less_equal": o1.less_equal,
})(lambda f: binary(f, values=(whole(1, 4, 3, 5), whole(1, 4, 3, 5))))
many({"logical_and": o1.logical_and, "logical_or": o1.logical_or, "logical_xor": o1.logical_xor})(
    lambda f: binary(f, values=(ints(1, 4, 3, 5, high=2) > 0, ints(1, 4, 3, 5, high=2) > 0))
)


@case
def logical_not():
    return unary(lambda x: o1.convert(o1.logical_not(o1.greater(x, const(0.5))), "f32"))


@case
def select():
    net = Net()
    a, b = net.input("a", rand(1, 4, 3, 5)), net.input("b", rand(1, 4, 3, 5))
    y = o1.select(o1.greater(a, const(0.25)), o1.add(a, b), o1.multiply(b, const(3.0)))
    y.set_friendly_name("out")
    return net.output(y)


many({"reduce_sum_n": 0, "reduce_sum_c": 1})(lambda axis: unary(lambda x: o1.reduce_sum(x, vec(axis), True), shape=(3, 4, 5)))


@case
def reduce_and():
    return unary(lambda x: o1.convert(o1.reduce_logical_and(o1.greater(x, const(-3.0)), vec(1, 3), True), "f32"))


# S32 in and out: what coefficients and arithmetic are then.
many({
    "s32_sum": o1.add, "s32_prod": o1.multiply, "s32_max": o1.maximum, "s32_sub": o1.subtract, "s32_div": o1.divide,
    "s32_equal": o1.equal,
}, ip="I32", op=None)(
    lambda f: binary(
        lambda a, b: o1.convert(f(a, b), "i32"),
        values=(ints(1, 4, 3, 5, low=-60, high=60), ints(1, 4, 3, 5, low=1, high=9)),
    )
)


@case(ip="I32", op=None)
def s32_large_sum():
    # Beyond what f32 holds exactly.
    a = ints(1, 4, 3, 5, low=1 << 26, high=1 << 28) | 1
    return binary(o1.add, values=(a, ints(1, 4, 3, 5, low=0, high=9) * 2))


# Moving elements, with operands.
@case
def concat_strided():
    net = Net()
    a, b, c = (net.input(n, rand(1, k, 3, 5)) for n, k in (("a", 2), ("b", 3), ("c", 1)))
    y = o1.concat([a, o1.relu(b), c, a], 1)
    y = o1.concat([y, o1.tanh(y)], 3)
    y.set_friendly_name("out")
    return net.output(y)


@case
def split_views():
    net = Net()
    s = o1.split(net.input("data", rand(1, 6, 5, 7)), const(1, np.int64), 3)
    for k, f in enumerate((o1.sigmoid, o1.tanh, o1.relu)):
        y = f(s.output(k))
        y.set_friendly_name("part%d" % k)
        net.output(y)
    return net


@case
def gather_indices():
    net = Net()
    y = o1.gather(net.input("data", rand(9, 11)), net.input("rows", whole(5, high=9).astype(np.int32)), const(0, np.int64))
    y.set_friendly_name("out")
    return net.output(y)


@case
def gather_embedding():
    net = Net()
    y = o1.gather(const(rand(16, 6)), net.input("tokens", ints(2, 5, high=16)), const(0, np.int64))
    y.set_friendly_name("out")
    return net.output(y)


@case
def gather_elements():
    net = Net()
    y = o6.gather_elements(net.input("data", rand(3, 7, 5)), indices(net, "where", ints(3, 4, 5, high=7)), 1)
    y.set_friendly_name("out")
    return net.output(y)


@case
def gather_nd():
    net = Net()
    y = o5.gather_nd(net.input("data", rand(4, 5, 6)), indices(net, "where", ints(7, 2, high=4)))
    y.set_friendly_name("out")
    return net.output(y)


@case
def scatter_update():
    net = Net()
    d, u = net.input("data", rand(6, 5)), net.input("updates", rand(3, 5))
    y = o3.scatter_update(d, indices(net, "rows", np.array([4, 0, 2])), u, const(0, np.int64))
    y.set_friendly_name("out")
    return net.output(y)


@case
def scatter_elements_along():
    net = Net()
    d, u = net.input("data", rand(2, 6, 3)), net.input("updates", rand(2, 2, 3))
    columns = np.stack([np.stack([rng.permutation(6)[:2] for _ in range(3)], 1) for _ in range(2)])
    y = o3.scatter_elements_update(d, indices(net, "columns", columns), u, const(1, np.int64))
    y.set_friendly_name("out")
    return net.output(y)


@case
def gather_nd_batches():
    net = Net()
    y = o5.gather_nd(net.input("data", rand(3, 4, 5)), indices(net, "where", ints(3, 2, 1, high=4)), 1)
    y.set_friendly_name("out")
    return net.output(y)


@case
def scatter_elements():
    net = Net()
    d, u = net.input("data", rand(5, 6)), net.input("updates", rand(2, 6))
    rows = np.stack([rng.permutation(5)[:2] for _ in range(6)], 1).astype(np.int32)
    y = o3.scatter_elements_update(d, indices(net, "rows", rows), u, const(0, np.int64))
    y.set_friendly_name("out")
    return net.output(y)


@case
def reverse_sequence():
    net = Net()
    lengths = net.input("lengths", np.array([4, 1, 6], np.int32))
    y = o1.reverse_sequence(net.input("data", rand(3, 6, 4)), lengths, 0, 1)
    y.set_friendly_name("out")
    return net.output(y)


many({"one_hot_last": -1, "one_hot_first": 0, "one_hot_middle": 1})(
    lambda axis: one_hot(axis)
)


def one_hot(axis):
    net = Net()
    y = o1.one_hot(indices(net, "data", ints(3, 4, high=6)), const(6, np.int64), const(2.5), const(-0.5), axis)
    y.set_friendly_name("out")
    return net.output(y)


@case
def broadcast_numpy():
    return unary(lambda x: o3.broadcast(x, vec(2, 4, 3, 5)), shape=(4, 1, 5))


@case
def broadcast_bidirectional():
    return unary(lambda x: o3.broadcast(x, vec(4, 3, 1), None, "BIDIRECTIONAL"), shape=(2, 4, 1, 5))


@case
def broadcast_explicit():
    return unary(lambda x: o3.broadcast(x, vec(4, 3, 5), vec(0, 2), "EXPLICIT"), shape=(4, 5))


# Sorting.
def topk(mode, sort, axis, shape=(1, 9, 4, 3)):
    net = Net()
    # All different, so that no order of equals matters.
    n = int(np.prod(shape))
    values = (rng.permutation(n) / 8.0 - 4).astype(np.float32).reshape(shape)
    t = o3.topk(net.input("data", values), const(4, np.int64), axis, mode, sort)
    t.set_friendly_name("top")
    return net.output(t.output(0), t.output(1))


# Values in FP32, indices in S32: as they are.
many({"topk_max_value": ("max", "value", 1), "topk_min_index": ("min", "index", 1), "topk_max_w": ("max", "value", 3, (1, 2, 3, 9))}, op=None)(
    lambda p: topk(*p)
)


@case
def topk_values_only():
    net = Net()
    values = (rng.permutation(60) / 8.0).astype(np.float32).reshape(1, 60)
    t = o3.topk(net.input("data", values), const(5, np.int64), 1, "max", "value")
    y = o1.relu(t.output(0))
    y.set_friendly_name("out")
    return net.output(y)


# Convolutions and pools, on the NCE and in software.
def convolution(build, shape=(1, 8, 12, 10)):
    return unary(build, shape=shape, scale=1.0)


# On the NCE: stride, pads before, pads after, kernel. The descriptor is the same without the padding in the divisor.
many({
    "avg_pool_padded": ([1, 1], [1, 1], [1, 1], [3, 3]),
    "avg_pool_padded_large": ([1, 1], [2, 2], [2, 2], [5, 5]),
    "avg_pool_padded_even": ([2, 2], [1, 1], [0, 0], [2, 2]),
    "avg_pool_padded_begin": ([1, 1], [1, 1], [0, 0], [2, 2]),
    "avg_pool_padded_end": ([1, 1], [0, 0], [1, 1], [2, 2]),
    "avg_pool_padded_tall": ([1, 1], [1, 0], [1, 0], [3, 3]),
})(lambda p: convolution(lambda x: o1.avg_pool(x, *p, False), shape=(1, 8, 12, 12)))
many({
    "max_pool_padded_begin": ([1, 1], [1, 1], [0, 0], [2, 2]),
})(lambda p: convolution(lambda x: o1.max_pool(x, *p), shape=(1, 8, 12, 12)))

CONVOLUTIONS = {
    "conv_1x1": lambda x: conv(x, 12, 1),
    "conv_3x3": lambda x: o1.relu(conv(x, 20, 3)),
    "conv_3x3_small": lambda x: conv(x, 4, 3),
    "conv_5x5_stride": lambda x: conv(x, 24, 5, (2, 2)),
    "conv_im2col": lambda x: conv(x, 40, (1, 4), (1, 1), [0, 1]),
    "conv_unequal_strides": lambda x: conv(x, 12, 3, (2, 1)),
    "conv_dilated": lambda x: conv(x, 12, 3, (1, 1), [2, 2], (2, 2)),
    "conv_depthwise": lambda x: conv(x, 8, 3, groups=8),
    "conv_depthwise_stride": lambda x: conv(x, 8, 5, (2, 2), groups=8),
    "conv_groups": lambda x: conv(x, 16, 3, groups=4),
    "conv_leaky": lambda x: o1.prelu(conv(x, 12, 3), const([0.125])),
    "conv_relu6": lambda x: o1.clamp(conv(x, 12, 3), 0.0, 1.0),
    "conv_elu": lambda x: o1.elu(conv(x, 12, 3), 1.0),
    "conv_pool": lambda x: o1.max_pool(o1.relu(conv(x, 16, 3)), [2, 2], [0, 0], [0, 0], [2, 2]),
    "deconv": lambda x: o1.convolution_backprop_data(x, const(rand(8, 6, 4, 4, scale=0.2)), [2, 2], None, [1, 1], [1, 1], [1, 1]),
    "deconv_asymmetric": lambda x: o1.convolution_backprop_data(x, const(rand(8, 6, 4, 4, scale=0.2)), [2, 2], None, [1, 1], [0, 0], [1, 1]),
    "deconv_depthwise": lambda x: o1.group_convolution_backprop_data(x, const(rand(8, 1, 1, 4, 4, scale=0.3)), [2, 2], None, [1, 1], [1, 1], [1, 1]),
    "max_pool": lambda x: o1.max_pool(x, [2, 2], [1, 1], [1, 1], [3, 3]),
    "max_pool_ceil": lambda x: o1.max_pool(x, [2, 2], [0, 0], [0, 0], [3, 3], "ceil"),
    "avg_pool_exclude": lambda x: o1.avg_pool(x, [2, 2], [1, 1], [1, 1], [3, 3], True),
    "avg_pool_include": lambda x: o1.avg_pool(x, [2, 2], [1, 1], [1, 1], [3, 3], False),
    "global_avg": lambda x: o1.reduce_mean(x, vec(2, 3), True),
    "global_max": lambda x: o1.reduce_max(x, vec(2, 3), True),
}
many(CONVOLUTIONS)(convolution)
many({"nohw_" + k: v for k, v in CONVOLUTIONS.items()}, args=NOHW)(convolution)
many({"conv_3d": 0})(lambda _: unary(
    lambda x: o1.add(
        o1.convolution(x, const(rand(6, 4, 3, 3, 3, scale=0.15)), [1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]),
        const(rand(1, 6, 1, 1, 1))),
    shape=(1, 4, 5, 8, 6), scale=1.0))
many({"nohw_conv_3d": 0}, args=NOHW)(lambda _: unary(
    lambda x: o1.add(
        o1.convolution(x, const(rand(6, 4, 3, 3, 3, scale=0.15)), [1, 2, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]),
        const(rand(1, 6, 1, 1, 1))),
    shape=(1, 4, 5, 8, 6), scale=1.0))
many({"max_pool_3d": 0, "nohw_max_pool_3d": 0})(lambda _: unary(
    lambda x: o1.max_pool(x, [2, 2, 2], [0, 0, 0], [0, 0, 0], [2, 2, 2]), shape=(1, 3, 4, 8, 6)))
many({"avg_pool_3d": 0})(lambda _: unary(
    lambda x: o1.avg_pool(x, [2, 2, 2], [1, 1, 1], [1, 1, 1], [3, 3, 3], True), shape=(1, 3, 5, 8, 6)))


# Matrices and recurrent networks.
def fully(x):
    return o1.add(o1.matmul(x, const(rand(10, 24, scale=0.2)), False, True), const(rand(1, 10)))


many({"fc": fully})(lambda f: unary(f, shape=(1, 24)))
many({"nohw_fc": fully}, args=NOHW)(lambda f: unary(f, shape=(1, 24)))
many({"nohw_fc_rows": fully}, args=NOHW)(lambda f: unary(f, shape=(3, 24)))
many({"fc_planes": 0, "nohw_fc_planes": 0})(lambda _: unary(
    lambda x: o1.matmul(o1.reshape(x, const([1, 24 * 20], np.int64), False), const(rand(7, 480, scale=0.05)), False, True), shape=(1, 24, 4, 5)))
CASES["nohw_fc_planes"] = (CASES["nohw_fc_planes"][0], {"args": NOHW})
many({"gemm": (False, False), "gemm_transposed_a": (True, False), "gemm_transposed_b": (False, True), "gemm_transposed": (True, True)})(
    lambda t: binary(
        lambda a, b: o1.matmul(a, b, *t),
        (1, 2, 6, 5) if t[0] else (1, 2, 5, 6),
        (1, 2, 7, 6) if t[1] else (1, 2, 6, 7),
    )
)


@case
def gemm_broadcast():
    return binary(lambda a, b: o1.matmul(a, b, False, False), (1, 3, 4, 6), (1, 1, 6, 5))


def lstm_weights(inputs, units):
    return const(rand(4 * units, inputs, scale=0.3)), const(rand(4 * units, units, scale=0.3)), const(rand(4 * units, scale=0.2))


@case
def lstm_cell():
    net = Net()
    x, h, c = net.input("x", rand(3, 5)), net.input("h", rand(3, 4)), net.input("c", rand(3, 4))
    y = o4.lstm_cell(x, h, c, *lstm_weights(5, 4), 4)
    y.set_friendly_name("lstm")
    return net.output(y)


def lstm(batch, direction="forward"):
    net = Net()
    both = 2 if direction == "bidirectional" else 1
    x = net.input("x", rand(batch, 6, 5))
    w, r, b = (np.stack([w.data for w in ws]) for ws in zip(*(lstm_weights(5, 4) for _ in range(both))))
    zero = const(np.zeros((batch, both, 4)))
    y = o5.lstm_sequence(x, zero, zero, vec(*[6] * batch), const(w), const(r), const(b), 4, direction)
    for k, name in enumerate(("y", "h", "c")):
        out = o1.tanh(y.output(k))
        out.set_friendly_name(name)
        net.output(out)
    return net


def lstm_by_cell(batch, cells):
    """Time first, as networks of ONNX have it: the compiler drops the transposition and swaps the dims."""
    net = Net()
    x = net.input("x", rand(cells, batch, 5))
    w, r, b = (const(v.data[None]) for v in lstm_weights(5, 4))
    zero = const(np.zeros((batch, 1, 4)))
    turned = o1.transpose(x, vec(1, 0, 2))
    y = o5.lstm_sequence(turned, zero, zero, vec(*[cells] * batch), w, r, b, 4, "forward")
    outs = (o1.transpose(y.output(0), vec(2, 1, 0, 3)), y.output(1), y.output(2))
    for out, name in zip(outs, ("y", "h", "c")):
        out = o1.tanh(out)
        out.set_friendly_name(name)
        net.output(out)
    return net


many({"lstm_by_cell": (3, 2), "lstm_by_cell_long": (2, 5)}, args=KEEP_BATCH)(lambda p: lstm_by_cell(*p))
many({"lstm_sequence": (1,), "lstm_reverse": (1, "reverse"), "lstm_batches": (2,), "lstm_bidirectional": (1, "bidirectional")})(lambda p: lstm(*p))


def iterator(batch_body, direction=1):
    """A recurrent network of its own making in a TensorIterator: state = tanh(x·W + state·R), all states out."""
    net = Net()
    x, h = net.input("x", rand(1, 6, 5)), net.input("h", rand(1, 4))
    bx, bh = o1.parameter([1, 1, 5], np.float32), o1.parameter([1, 4], np.float32)
    step = o1.matmul(o1.reshape(bx, const([1, 5], np.int64), False), const(rand(5, 4, scale=0.5)), False, False)
    state = o1.tanh(o1.add(step, o1.matmul(bh, const(rand(4, 4, scale=0.5)), False, False)))
    body = ov.Model([state, o1.reshape(state, const([1, 1, 4], np.int64), False)], [bx, bh], "body")
    ti = tensor_iterator()
    ti.set_body(body)
    if direction > 0:
        ti.set_sliced_input(bx, x.output(0), 0, 1, 1, -1, 1)
    else:
        ti.set_sliced_input(bx, x.output(0), -1, -1, 1, 0, 1)
    ti.set_merged_input(bh, h.output(0), body.results[0].output(0))
    last = ti.get_iter_value(body.results[0].output(0), -1)
    if direction > 0:
        all_states = ti.get_concatenated_slices(body.results[1].output(0), 0, 1, 1, -1, 1)
    else:
        all_states = ti.get_concatenated_slices(body.results[1].output(0), -1, -1, 1, 0, 1)
    for node, name in ((last, "last"), (all_states, "states")):
        y = o1.multiply(node, const(2.0))
        y.set_friendly_name(name)
        net.output(y)
    return net


many({"loop_forward": (1, 1), "loop_backward": (1, -1)})(lambda p: iterator(*p))


# Detection.
def detection_attrs(**more):
    attrs = {
        "num_classes": 5, "background_label_id": 0, "top_k": 40, "keep_top_k": np.array([12], np.int32),
        "code_type": "caffe.PriorBoxParameter.CENTER_SIZE", "share_location": True, "nms_threshold": 0.45,
        "confidence_threshold": 0.25, "variance_encoded_in_target": False, "normalized": True,
    }
    attrs.update(more)
    return attrs


def ssd(image, maps, **attrs):
    """Scores and boxes of two planes of features, prior boxes, DetectionOutput."""
    net = Net()
    x = net.input("image", image)
    x = o1.relu(conv(x, 8, 3, (2, 2)))
    boxes, scores, priors = [], [], []
    for k, size in enumerate(maps):
        x = o1.relu(conv(x, 12, 3, (2, 2)))
        h, w = x.get_output_shape(0)[2:]
        flat = const([1, -1], np.int64)
        for plane, into in ((conv(x, 3 * 4, 3), boxes), (conv(x, 3 * 5, 3), scores)):
            into.append(o1.reshape(o1.transpose(plane, vec(0, 2, 3, 1)), flat, False))
        prior = o1.prior_box(vec(h, w), vec(*image.shape[2:]), {
            "min_size": np.array([size], np.float32), "aspect_ratio": np.array([2.0], np.float32), "flip": True,
            "clip": False, "offset": 0.5, "variance": np.array([0.1, 0.1, 0.2, 0.2], np.float32),
        })
        priors.append(o1.unsqueeze(prior, const([0], np.int64)))
    scores = o1.reshape(o1.concat(scores, 1), const([1, -1, 5], np.int64), False)
    # Spread out, so that no two scores are within rounding of each other or of the threshold.
    scores = o1.softmax(o1.multiply(scores, const(3.0)), 2)
    scores = o1.reshape(scores, const([1, -1], np.int64), False)
    y = o1.detection_output(o1.concat(boxes, 1), scores, o1.concat(priors, 2), detection_attrs(**attrs))
    y.set_friendly_name("detections")
    return net.output(y)


@case
def ssd_detection():
    return ssd(rand(1, 3, 32, 32, low=0, high=1), (10.0, 20.0))


def detection(
    priors=24, classes=4, code="CENTER_SIZE", variance=False, share=True, normalized=True, images=1, refined=False, sets=1, **attrs
):
    net = Net()
    where = priors * (1 if share else classes) * 4
    loc = net.input("loc", rand(images, where, scale=0.4 if code == "CENTER_SIZE" else 0.05))
    # All different by far more than FP16 rounds.
    conf = ((rng.permutation(images * priors * classes) + 0.5) / (images * priors * classes)).astype(np.float16).astype(np.float32)
    conf = net.input("conf", conf.reshape(images, priors * classes))
    centers, sizes = rng.uniform(0.2, 0.8, (priors, 2)), rng.uniform(0.1, 0.4, (priors, 2))
    boxes = np.concatenate([centers - sizes / 2, centers + sizes / 2], 1)
    variances = np.tile([0.1, 0.1, 0.2, 0.2], (priors, 1))
    if not normalized:
        # Four coordinates in pixels after an index of the image.
        boxes, variances = (np.concatenate([np.zeros((priors, 1)), a], 1) for a in (boxes * 32, variances))
        if not variance:
            variances = variances[:, 1:]
            variances = np.concatenate([variances, np.zeros((priors, 1))], 1)
    boxes, variances = boxes.reshape(1, 1, -1), variances.reshape(1, 1, -1)
    both = boxes if variance else np.concatenate([boxes, variances], 1)
    both = np.concatenate([both * (1 - 0.25 * k) for k in range(sets)], 0)
    attrs = detection_attrs(
        num_classes=classes, code_type="caffe.PriorBoxParameter." + code, variance_encoded_in_target=variance,
        share_location=share, normalized=normalized, **attrs,
    )
    inputs = [loc, conf, net.input("priors", both.astype(np.float16).astype(np.float32))]
    if refined:
        object_scores = rand(images, priors * 2, low=0.0, high=1.0)
        inputs += [net.input("arm_conf", object_scores), net.input("arm_loc", rand(images, where, scale=0.3))]
        y = o1.detection_output(inputs[0], inputs[1], inputs[2], dict(attrs, objectness_score=0.4), inputs[3], inputs[4])
    else:
        y = o1.detection_output(*inputs, attrs)
    y.set_friendly_name("detections")
    return net.output(y)


many({
    "detection_center": {},
    "detection_corner": {"code": "CORNER"},
    "detection_variance": {"variance": True, "code": "CORNER"},
    "detection_own_boxes": {"share": False},
    "detection_keep_all": {"top_k": -1, "keep_top_k": np.array([-1], np.int32), "confidence_threshold": 0.6},
    "detection_clip": {"clip_after_nms": True, "clip_before_nms": True},
    "detection_images": {"images": 2, "keep_top_k": np.array([6], np.int32)},
    "detection_own_priors": {"images": 2, "sets": 2, "keep_top_k": np.array([6], np.int32)},
    "detection_refined": {"refined": True},
    "detection_decrease": {"decrease_label_id": True, "background_label_id": 0},
    "detection_pixels": {"normalized": False, "input_width": 32, "input_height": 32, "share": True},
    "detection_few": {"confidence_threshold": 0.93},
})(lambda p: detection(**p))


ANCHORS = [10.0, 14.0, 23.0, 27.0, 37.0, 58.0, 81.0, 82.0, 135.0, 169.0, 344.0, 319.0]


def yolo(v3, shape=(1, 3, 32, 32)):
    net = Net()
    x = net.input("image", rand(*shape, low=0, high=1))
    x = o1.prelu(conv(x, 12, 3, (2, 2)), const([0.125]))
    x = o1.prelu(conv(x, 16, 3, (2, 2)), const([0.125]))
    x = conv(x, 3 * (5 + 4), 1)
    if v3:
        y = o1.region_yolo(x, 4, 4, 6, False, [0, 1, 2], 1, 3, ANCHORS)
    else:
        y = o1.region_yolo(x, 4, 4, 3, True, [], 1, 3, ANCHORS[:6])
    y.set_friendly_name("region")
    return net.output(y)


many({"yolo_v3_head": True, "yolo_v2_head": False})(yolo)


@case
def reorg_yolo():
    return unary(lambda x: o2.reorg_yolo(x, [2]), shape=(1, 8, 6, 10))


def rois(n, height, width, scale=1.0):
    a, b = rng.uniform(0, 0.6, (n, 2)), rng.uniform(0.15, 0.39, (n, 2))
    boxes = np.concatenate([a, a + b], 1) * np.array([width - 1, height - 1] * 2) / scale
    return np.concatenate([np.zeros((n, 1)), boxes], 1).astype(np.float16).astype(np.float32)


def roi_pool(method):
    net = Net()
    data = net.input("data", rand(1, 6, 14, 18))
    r = rois(5, 14, 18, 0.5) if method == "max" else rois(5, 2, 2)
    y = o2.roi_pooling(data, net.input("rois", r), [3, 4], 0.5 if method == "max" else 1.0, method)
    y.set_friendly_name("out")
    return net.output(y)


many({"roi_pooling_max": "max", "roi_pooling_bilinear": "bilinear"})(roi_pool)


@case
def psroi_pooling():
    net = Net()
    y = o1.psroi_pooling(net.input("data", rand(1, 3 * 3 * 2, 14, 18)), net.input("rois", rois(4, 14, 18, 0.5)), 2, 3, 0.5, 1, 1, "average")
    y.set_friendly_name("out")
    return net.output(y)


@case
def roi_align(mode="avg"):
    net = Net()
    r = rois(5, 14, 18, 0.5)[:, 1:]
    y = o3.roi_align(net.input("data", rand(1, 6, 14, 18)), net.input("rois", r), indices(net, "where", np.zeros(5)), 3, 4, 2, 0.5, mode)
    y.set_friendly_name("out")
    return net.output(y)


@case
def roi_align_max():
    return roi_align("max")


def proposal(outputs=1, **more):
    net = Net()
    h, w, anchors = 6, 7, 6
    n = h * w * anchors
    score = ((rng.permutation(2 * n) + 0.5) / (2 * n)).astype(np.float16).astype(np.float32).reshape(1, 2 * anchors, h, w)
    attrs = {
        "base_size": 16, "pre_nms_topn": 60, "post_nms_topn": 12, "nms_thresh": 0.6, "feat_stride": 16, "min_size": 12,
        "ratio": np.array([0.5, 1.0, 2.0], np.float32), "scale": np.array([2.0, 4.0], np.float32),
        "clip_before_nms": True, "clip_after_nms": False, "normalize": False, "box_size_scale": 1.0,
        "box_coordinate_scale": 1.0, "framework": "",
    }
    attrs.update(more)
    attrs = {k: np.uint32(v) if isinstance(v, int) and not isinstance(v, bool) else np.float32(v) if isinstance(v, float) else v for k, v in attrs.items()}
    deltas = net.input("deltas", rand(1, 4 * anchors, h, w, scale=0.2))
    build = o1.proposal if outputs == 1 else o4.proposal
    y = build(net.input("scores", score), deltas, net.input("info", np.array([96.0, 112.0, 1.0], np.float32)), attrs)
    y.set_friendly_name("rois")
    return net.output(*(y.output(k) for k in range(outputs)))


many({
    "proposal_caffe": {},
    "proposal_tensorflow": {"framework": "tensorflow", "box_size_scale": 5.0, "box_coordinate_scale": 10.0},
    "proposal_normalized": {"normalize": True, "clip_after_nms": True},
    "proposal_probabilities": {"outputs": 2},
    "proposal_few": {"pre_nms_topn": 20, "post_nms_topn": 30},
})(lambda p: proposal(**p))


@case
def ctc_decoder():
    net = Net()
    mask = np.ones((12, 1), np.float32)
    y = o1.ctc_greedy_decoder(net.input("data", rand(12, 1, 6)), net.input("mask", mask), True)
    y.set_friendly_name("out")
    return net.output(y)


# Whole networks in every form of input: batch, layout, precision, streams, no neural compute engine.
def small(batch=1, pool=True, high=0):
    net = Net()
    # Bytes, brought to the range in which the weights were chosen; or numbers between 0 and 1.
    x = net.input("data", whole(batch, 3, 16, 16, high=high) if high else rand(batch, 3, 16, 16, low=0, high=1))
    x = o1.multiply(x, const(1 / 256)) if high else x
    x = o1.relu(conv(x, 8, 3))
    x = o1.max_pool(x, [2, 2], [0, 0], [0, 0], [2, 2]) if pool else conv(x, 8, 3, (2, 2))
    y = conv(x, 8, 3, groups=8)
    x = o1.clamp(o1.add(conv(y, 8, 1), x), 0.0, 6.0)
    x = o1.reduce_mean(x, vec(2, 3), False)
    x = o1.softmax(o1.matmul(x, const(rand(10, 8)), False, True), 1)
    x.set_friendly_name("prob")
    return net.output(x)


NO_BATCH = ["-c", "MYRIAD_DETECT_NETWORK_BATCH", "NO"]
many({"small_batch3": 3}, args=[])(small)
# The compiler refuses a merged convolution and pool of several images.
many({"small_batch3_apart": 3}, args=NO_BATCH)(lambda batch: small(batch, False))
# One pooling over the channels of all images.
many({"average_batch4_apart": 0}, args=NO_BATCH)(lambda _: unary(
    lambda x: o1.reduce_mean(o1.relu(conv(x, 20, 1)), vec(2, 3), True), shape=(4, 8, 13, 13), scale=1.0))
many({"conv_pools_batch3_apart": 0}, args=NO_BATCH)(lambda _: unary(
    lambda x: o1.max_pool(
        conv(o1.max_pool(o1.relu(conv(x, 8, 3)), [2, 2], [0, 0], [0, 0], [3, 3], "ceil"), 10, 1),
        [2, 2], [0, 0], [0, 0], [3, 3], "ceil"),
    shape=(3, 3, 24, 24), scale=1.0))
many({"pools_batch3_apart": 0}, args=NO_BATCH)(lambda _: unary(
    lambda x: o1.avg_pool(o1.relu(o1.max_pool(x, [2, 2], [0, 0], [0, 0], [3, 3])), [1, 1], [0, 0], [0, 0], [2, 2], False),
    shape=(3, 6, 11, 13)))
many({"small_batch3_nohw": 3}, args=NOHW)(small)
many({"small_fp32": 1}, ip="FP32", op="FP32")(small)
many({"small_fp32_batch2": 2}, ip="FP32", op="FP32")(small)
many({"small_u8": 1}, ip="U8", args=[])(lambda batch: small(batch, high=256))
many({"small_u8_nhwc_batch2": 2}, ip="U8", args=["-il", "NHWC"])(lambda batch: small(batch, high=256))
many({"small_nhwc": 1}, args=["-il", "NHWC"])(small)
many({"small_nhwc_fp32_batch2": 2}, ip="FP32", op="FP32", args=["-il", "NHWC"])(small)
many({"small_nohw": 1}, args=NOHW)(small)
many({"small_nohw_nhwc": 1}, args=NOHW + ["-il", "NHWC"])(small)
many({"small_s3": 1}, args=["-c", "MYRIAD_THROUGHPUT_STREAMS", "3"])(small)
many({"small_s2": 1}, args=["-c", "MYRIAD_THROUGHPUT_STREAMS", "2"])(small)


def make(name, args, core, folder):
    function, options = CASES[name]
    rng.seed(zlib.crc32(name.encode()) + args.seed)
    net = function()
    model = ov.Model(net.results, net.parameters, name)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled([net.values[p.get_friendly_name()] for p in net.parameters])
    outputs = {}
    for k, result in enumerate(model.get_results()):
        source = result.input_value(0)
        node = source.get_node()
        port = ".%d" % source.get_index() if node.get_output_size() > 1 else ""
        value = results[k]
        outputs[node.get_friendly_name() + port] = value.astype(np.int32 if value.dtype == np.int64 else value.dtype)
    xml = folder / (name + ".xml")
    ov.serialize(model, str(xml), str(xml.with_suffix(".bin")), "IR_V10")
    blob = folder / (name + ".blob")
    command = ["sh", args.compile, "-m", str(xml), "-o", str(blob)]
    for flag, key in (("-ip", "ip"), ("-op", "op")):
        precision = options.get(key, "FP16")
        command += [flag, precision] if precision else []
    streams = [] if {"MYRIAD_THROUGHPUT_STREAMS", NOHW[1]} & set(options.get("args", [])) else ["-c", "MYRIAD_THROUGHPUT_STREAMS", "1"]
    run = subprocess.run(command + options.get("args", []) + streams, capture_output=True, text=True)
    if run.returncode or not blob.exists():
        return "refused: " + (run.stderr.strip().splitlines() or ["no message"])[-1][:300]
    args.out.mkdir(parents=True, exist_ok=True)
    for old in args.out.glob(name + ".*"):
        old.unlink()
    (args.out / (name + ".blob")).write_bytes(blob.read_bytes())
    for tensor, value in net.values.items():
        small = value.astype(np.float16) if value.dtype == np.float32 else value
        np.save(args.out / f"{name}.in.{tensor}.npy", small.astype(np.uint8) if options.get("ip") == "U8" else small)
    for tensor, value in outputs.items():
        np.save(args.out / f"{name}.out.{tensor}.npy", value)
    return f"{blob.stat().st_size} bytes"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", required=True, help="script that compiles an IR to a blob")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("names", nargs="*", help="networks to make; all by default")
    args = parser.parse_args()
    core = ov.Core()
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in args.names or CASES:
            try:
                said = make(name, args, core, pathlib.Path(folder))
            except Exception as error:  # noqa: BLE001: one network must not end the others
                said = f"failed: {type(error).__name__}: {str(error).strip().splitlines()[-1][:300]}"
            failures += not said.endswith("bytes")
            print(f"{name:28} {said}", flush=True)
    sys.exit(failures != 0)


if __name__ == "__main__":
    main()
