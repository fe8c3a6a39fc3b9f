#!/usr/bin/env python3
"""The `execute` engine beside the OpenVINO CPU plugin, in one run.

    python benches/execute_vs_cpu.py DIR [--rounds N] [--seconds S] [--threads N] [NAME...]

DIR holds, per network, NAME.onnx and NAME_*.blob with its arrays (.in.TENSOR.npy, .out.TENSOR.npy). Needs a Python with
openvino (its own wheel, CPU plugin) and numpy, and cargo. Both get the same number of threads, compute the same network
at FP32 (the engine rounds to FP16 between stages), and take turns, so that other work on the machine hurts both; the best
time of each counts. The median, and the CPU time that all threads took together, are printed beside it: with `--threads 1` the
latter says most on a machine that is busy with other work. Exit code 1 when a ratio is above the goal of 4.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import openvino as ov

GOAL = 4.0
ROOT = pathlib.Path(__file__).resolve().parent.parent


def build():
    """Builds the timing test in the release profile and gives its path."""
    command = ["cargo", "test", "--quiet", "--release", "-p", "ncs2-device", "--test", "execute", "--no-run"]
    command += ["--message-format=json"]
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    found = [json.loads(line).get("executable") for line in lines if line.startswith("{")]
    return next(path for path in reversed(found) if path)


def ours(binary, blob, seconds, threads):
    environment = dict(
        os.environ, NCS2_BLOB=str(blob.resolve()), NCS2_SECONDS=str(seconds), RAYON_NUM_THREADS=str(threads)
    )
    command = [binary, "times", "--ignored", "--exact", "--nocapture"]
    text = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout
    lines = [line.split() for line in text.splitlines() if line.startswith("ms ")]
    return [(float(wall), float(cpu)) for _, wall, cpu in lines]


class Reference:
    def __init__(self, core, model, blob, threads):
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        self.request = core.compile_model(core.read_model(model), "CPU", options).create_infer_request()
        (array,) = blob.parent.glob(blob.stem + ".in.*.npy")
        self.input = np.load(array).astype(np.float32)

    def times(self, seconds):
        times, end = [], time.perf_counter() + seconds
        while time.perf_counter() < end or not times:
            start, cpu = time.perf_counter(), time.process_time()
            self.request.infer({0: self.input})
            times.append(((time.perf_counter() - start) * 1e3, (time.process_time() - cpu) * 1e3))
        return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=pathlib.Path)
    parser.add_argument("names", nargs="*", default=["squeezenet1_1", "mobilenet_v2", "resnet18"])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0, help="per round and side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--binary", help="the built timing test, to save the building")
    args = parser.parse_args()
    binary = args.binary or build()
    core = ov.Core()
    load = os.getloadavg()[0]
    print(f"OpenVINO {ov.get_version()}, {args.threads} threads, load {load:.1f}; ms: best (median) wall, best CPU")
    print(f"{'network':16} {'blob':24} {'execute':>27} {'CPU plugin FP32':>27}  ratio, of medians, of CPU")
    worst = 0.0
    for name in args.names:
        model = args.dir / (name + ".onnx")
        blobs = sorted(args.dir.glob(name + "_*.blob"))
        if not model.exists() or not blobs:
            print(f"{name:16} needs {model.name} and {name}_*.blob in {args.dir}")
            worst = float("inf")
            continue
        reference = Reference(core, model, blobs[0], args.threads)
        mine, theirs = [], []
        reference.times(0.2)
        for _ in range(args.rounds):
            theirs += reference.times(args.seconds)
            mine += ours(binary, blobs[0], args.seconds, args.threads)
        best = [[min(t[k] for t in side) for k in (0, 1)] for side in (mine, theirs)]
        middle = [np.median([t[0] for t in side]) for side in (mine, theirs)]
        cells = [f"{wall:8.2f} ({m:7.2f}) {cpu:8.2f}" for (wall, cpu), m in zip(best, middle)]
        ratios = [best[0][0] / best[1][0], middle[0] / middle[1], best[0][1] / best[1][1]]
        worst = max(worst, ratios[0])
        ratios = " ".join(f"{r:6.2f}" for r in ratios)
        print(f"{name:16} {blobs[0].stem:24} {cells[0]:>27} {cells[1]:>27} {ratios}", flush=True)
    sys.exit(worst > GOAL)


if __name__ == "__main__":
    main()
