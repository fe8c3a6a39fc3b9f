"""Makes the ONNX models of the calibration: standard architectures with random weights, whose values do not matter here.

    calibration_models.py DIR [NAME...]      needs numpy and onnx 1.12 (what the 2021.4.2 compiler reads)

Compile each with the vendor's compiler (two throughput streams unless calibration.toml says otherwise), then make the
table: cargo run -p ncs2-device --example calibration_table -- NAME=FILE.blob... > device/profiles/calibration.toml
"""
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

rng = np.random.RandomState(7)


class Net:
    def __init__(self, name, shape):
        self.name, self.nodes, self.weights, self.count = name, [], [], 0
        self.inputs = [helper.make_tensor_value_info("data", TensorProto.FLOAT, shape)]
        self.channels = {"data": shape[1]}

    def const(self, array):
        self.count += 1
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), f"w{self.count}"))
        return f"w{self.count}"

    def op(self, kind, inputs, channels=None, **attributes):
        self.count += 1
        out = f"t{self.count}"
        self.nodes.append(helper.make_node(kind, inputs, [out], name=out, **attributes))
        self.channels[out] = channels if channels is not None else self.channels.get(inputs[0])
        return out

    def conv(self, x, out, k, stride=1, pad=None, groups=1, act="relu"):
        ci = self.channels[x]
        pad = k // 2 if pad is None else pad
        w = self.const((rng.randn(out, ci // groups, k, k) * np.sqrt(2 / (ci // groups * k * k))).astype(np.float32))
        b = self.const((rng.randn(out) * 0.05).astype(np.float32))
        y = self.op("Conv", [x, w, b], out, kernel_shape=[k, k], strides=[stride] * 2, pads=[pad] * 4, group=groups)
        if act == "relu":
            y = self.op("Relu", [y])
        if act == "relu6":
            y = self.op("Clip", [y, self.const(np.float32(0)), self.const(np.float32(6))])
        return y

    def pool(self, x, k=3, stride=2, pad=0, ceil=1):
        return self.op("MaxPool", [x], kernel_shape=[k] * 2, strides=[stride] * 2, pads=[pad] * 4, ceil_mode=ceil)

    def concat(self, parts):
        return self.op("Concat", parts, sum(self.channels[p] for p in parts), axis=1)

    def fc(self, x, ci, co):
        w = self.const((rng.randn(co, ci) / np.sqrt(ci)).astype(np.float32))
        return self.op("Gemm", [x, w, self.const(np.zeros(co, np.float32))], transB=1)

    def classifier(self, x, classes=1000, softmax=True):
        c = self.channels[x]
        x = self.fc(self.op("Flatten", [self.op("GlobalAveragePool", [x])]), c, classes)
        self.save({(self.op("Softmax", [x], axis=1) if softmax else x): [1, classes]})

    def save(self, outputs):
        infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()]
        graph = helper.make_graph(self.nodes, self.name, self.inputs, infos, self.weights)
        opsets = [helper.make_opsetid("", 11)]
        model = helper.make_model(graph, opset_imports=opsets)
        model.ir_version = 6
        onnx.save(model, f"{FOLDER}/{self.name}.onnx")
        print(self.name)


def googlenet_v1():
    n = Net("googlenet_v1", [1, 3, 224, 224])
    lrn = lambda x: n.op("LRN", [x], alpha=1e-4, beta=0.75, bias=1.0, size=5)
    x = lrn(n.pool(n.conv("data", 64, 7, 2)))
    x = n.pool(lrn(n.conv(n.conv(x, 64, 1), 192, 3)))
    for block in [(64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), None, (192, 96, 208, 16, 48, 64),
                  (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64), (112, 144, 288, 32, 64, 64),
                  (256, 160, 320, 32, 128, 128), None, (256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)]:
        if block is None:
            x = n.pool(x)
            continue
        a, b1, b3, c1, c5, d = block
        x = n.concat([n.conv(x, a, 1), n.conv(n.conv(x, b1, 1), b3, 3), n.conv(n.conv(x, c1, 1), c5, 5),
                      n.conv(n.pool(x, 3, 1, 1, 0), d, 1)])
    n.classifier(x)


def squeezenet1_1_227():
    n = Net("squeezenet1_1_227", [1, 3, 227, 227])
    x = n.pool(n.conv("data", 64, 3, 2, 0))
    for i, (s, e) in enumerate([(16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256)]):
        q = n.conv(x, s, 1)
        x = n.concat([n.conv(q, e, 1), n.conv(q, e, 3)])
        if i in (1, 3):
            x = n.pool(x)
    x = n.op("Flatten", [n.op("GlobalAveragePool", [n.conv(x, 1000, 1)])])
    n.save({n.op("Softmax", [x], axis=1): [1, 1000]})


def resnet(name, blocks, bottleneck):
    n = Net(name, [1, 3, 224, 224])
    x = n.pool(n.conv("data", 64, 7, 2), 3, 2, 1, 0)
    for stage, count in enumerate(blocks):
        for i in range(count):
            width, stride = 64 << stage, 2 if stage and not i else 1
            out = width * 4 if bottleneck else width
            if bottleneck:
                y = n.conv(n.conv(n.conv(x, width, 1), width, 3, stride), out, 1, act=None)
            else:
                y = n.conv(n.conv(x, width, 3, stride), out, 3, act=None)
            skip = x if n.channels[x] == out and stride == 1 else n.conv(x, out, 1, stride, act=None)
            x = n.op("Relu", [n.op("Add", [y, skip])])
    n.classifier(x)


def mobileone_s0():
    n = Net("mobileone_s0", [1, 3, 224, 224])
    x = n.conv("data", 48, 3, 2)
    for width, count in [(48, 2), (128, 8), (256, 10), (1024, 1)]:
        for i in range(count):
            x = n.conv(x, n.channels[x], 3, 1 if i else 2, groups=n.channels[x])
            x = n.conv(x, width, 1)
    n.classifier(x, softmax=False)


def ssd(name, features):
    """Heads as the TensorFlow detection API exports them, 1917 boxes, 91 classes; without the detection output, which ONNX lacks."""
    n = Net(name, [1, 3, 300, 300])
    maps = features(n)
    for mid, out in [(256, 512), (128, 256), (128, 256), (64, 128)]:
        maps.append(n.conv(n.conv(maps[-1], mid, 1, act="relu6"), out, 3, 2, act="relu6"))
    boxes, scores = [], []
    for i, x in enumerate(maps):
        anchors = 3 if i == 0 else 6
        for values, parts in [(4, boxes), (91, scores)]:
            y = n.conv(x, anchors * values, 1, act=None)
            y = n.op("Transpose", [y], perm=[0, 2, 3, 1])
            parts.append(n.op("Reshape", [y, n.const(np.array([1, -1], np.int64))]))
    boxes, scores = n.op("Concat", boxes, axis=1), n.op("Concat", scores, axis=1)
    n.save({boxes: [1, 1917 * 4], n.op("Sigmoid", [scores]): [1, 1917 * 91]})


def mobilenet_v1(n):
    x, maps = n.conv("data", 32, 3, 2, act="relu6"), []
    for out, stride in [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)] + [(512, 1)] * 5 + [(1024, 2), (1024, 1)]:
        if out == 1024 and not maps:
            maps.append(x)
        x = n.conv(x, n.channels[x], 3, stride, groups=n.channels[x], act="relu6")
        x = n.conv(x, out, 1, act="relu6")
    return maps + [x]


def mobilenet_v2(n):
    x, maps = n.conv("data", 32, 3, 2, act="relu6"), []
    for t, c, count, s in [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]:
        for i in range(count):
            ci, stride = n.channels[x], 1 if i else s
            y = x if t == 1 else n.conv(x, ci * t, 1, act="relu6")
            if c == 160 and i == 0:
                maps.append(y)
            y = n.conv(n.conv(y, ci * t, 3, stride, groups=ci * t, act="relu6"), c, 1, act=None)
            x = n.op("Add", [x, y]) if stride == 1 and ci == c else y
    return maps + [n.conv(x, 1280, 1, act="relu6")]


def mlp():
    n = Net("mlp", [1, 784])
    x = "data"
    for ci, co in [(784, 256), (256, 128), (128, 10)]:
        x = n.fc(x, ci, co)
        if co != 10:
            x = n.op("Relu", [x])
    n.save({n.op("Softmax", [x], axis=1): [1, 10]})


ALL = {
    "googlenet_v1": googlenet_v1,
    "squeezenet1_1_227": squeezenet1_1_227,
    "resnet18": lambda: resnet("resnet18", [2, 2, 2, 2], False),
    "resnet50": lambda: resnet("resnet50", [3, 4, 6, 3], True),
    "mobileone_s0": mobileone_s0,
    "ssd_mobilenet_v1": lambda: ssd("ssd_mobilenet_v1", mobilenet_v1),
    "ssd_mobilenet_v2": lambda: ssd("ssd_mobilenet_v2", mobilenet_v2),
    "mlp": mlp,
}

if __name__ == "__main__":
    FOLDER = sys.argv[1]
    for name in sys.argv[2:] or ALL:
        ALL[name]()
