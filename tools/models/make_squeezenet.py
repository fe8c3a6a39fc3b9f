#!/usr/bin/env python3
"""Writes SqueezeNet 1.1 as ONNX: the public network's layers and shapes, with random weights from a fixed seed.

    pip install onnx
    python3 make_squeezenet.py squeezenet1_1.onnx

Input data 1x3x224x224, output prob 1x1000. Trained weights are not needed to see whether a stick computes what the model
says; for names of things take a trained model's own ONNX file in its place.
"""

import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

# Channels after the first 1x1 convolution of each fire module, and of each of its two halves; None is a pool between them.
FIRES = [(16, 64), (16, 64), None, (32, 128), (32, 128), None, (48, 192), (48, 192), (64, 256), (64, 256)]


class Network:
    """Nodes and constants, in order."""

    def __init__(self):
        self.nodes, self.constants = [], []
        self.draw = np.random.default_rng(0)

    def node(self, kind, inputs, name, **attributes):
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name, values):
        self.constants.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def conv(self, source, name, channels, filters, kernel, stride=1, pad=0):
        spread = np.sqrt(2 / (channels * kernel * kernel))
        shape = (filters, channels, kernel, kernel)
        weights = self.constant(f"{name}/weights", self.draw.normal(0, spread, shape))
        bias = self.constant(f"{name}/bias", self.draw.normal(0, 0.05, filters))
        made = self.node(
            "Conv", [source, weights, bias], name,
            kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4,
        )
        return self.node("Relu", [made], f"{name}/relu")

    def pool(self, source, name):
        return self.node("MaxPool", [source], name, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__.strip())
    net = Network()
    x, channels = net.pool(net.conv("data", "conv1", 3, 64, 3, stride=2), "pool1"), 64
    for number, fire in enumerate(FIRES, 2):
        if fire is None:
            x = net.pool(x, f"pool{number}")
            continue
        squeeze, expand = fire
        name = f"fire{number}"
        small = net.conv(x, f"{name}/squeeze", channels, squeeze, 1)
        halves = [
            net.conv(small, f"{name}/expand1x1", squeeze, expand, 1),
            net.conv(small, f"{name}/expand3x3", squeeze, expand, 3, pad=1),
        ]
        x, channels = net.node("Concat", halves, f"{name}/concat", axis=1), 2 * expand
    x = net.conv(x, "classifier", channels, 1000, 1)
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x], "average")], "flat")
    net.node("Softmax", [x], "prob", axis=1)
    tensor = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    graph = helper.make_graph(
        net.nodes, "squeezenet1_1", [tensor("data", [1, 3, 224, 224])], [tensor("prob", [1, 1000])], net.constants
    )
    # What the vendor's reader of 2021 knows.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
    onnx.save(shape_inference.infer_shapes(model), sys.argv[1])


main()
