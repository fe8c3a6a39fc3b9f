#!/usr/bin/env python3
"""Makes the INT8 form (QDQ) of an ONNX model with onnxruntime's own quantisation, for `ncs2ctl quantize --int8`.

    pip install onnx onnxruntime
    python3 quantize_qdq.py tiny.onnx tiny_qdq.onnx [FOLDER of .npy | COUNT]

Activations become uint8, weights int8 with a scale for each channel. Calibrated with the arrays of a folder, which are
the model's one input, else with COUNT (8) random ones from −1 to 1, from a fixed seed. `tests/data/onnx/tiny_qdq.onnx` came out of
it with onnx 1.23.2 and onnxruntime 1.31.1.
"""

import pathlib
import sys

import numpy as np
import onnx
import onnx.version_converter
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static


class Inputs(CalibrationDataReader):
    """The inputs, one after another."""

    def __init__(self, name, arrays):
        self.rest = iter([{name: array} for array in arrays])

    def get_next(self):
        return next(self.rest, None)


def main():
    if not 3 <= len(sys.argv) <= 4:
        sys.exit(__doc__.strip())
    source, target = sys.argv[1:3]
    data = sys.argv[3] if len(sys.argv) == 4 else "8"
    model = onnx.load(source)
    # Scales for each channel came with operator set 13; a model that has them and names an older one is read by nobody.
    if max(opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")) < 13:
        model = onnx.version_converter.convert_version(model, 13)
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    (feed,) = [value for value in graph.input if value.name not in constants]
    shape = [dim.dim_value for dim in feed.type.tensor_type.shape.dim]
    if data.isdigit():
        draw = np.random.default_rng(0)
        arrays = [draw.uniform(-1, 1, shape).astype(np.float32) for _ in range(int(data))]
    else:
        files = sorted(pathlib.Path(data).glob("*.npy"))
        arrays = [np.load(file).astype(np.float32).reshape(shape) for file in files]
    quantize_static(
        model,
        target,
        Inputs(feed.name, arrays),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


main()
