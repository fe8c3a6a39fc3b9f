"""The vendor's client, driven by lists of steps, in the virtual machine. Each line of standard input names a file with a list.

Prints one JSON object a line: first {"step": n, "do": word, "at": "begin"}, then the same step's answer, with "error" where the
vendor's client raised one, and {"done": true} behind the list. Every list has a core of its own. `ncs2-vendor-tests ours` takes the same steps and answers in the same way. Standard library, numpy and
the wheel's own `openvino` only.
"""

import gc
import json
import os
import resource
import sys
import threading
import time

import numpy

from openvino.inference_engine import IECore, IENetwork, StatusCode

TYPES = {"FP32": numpy.float32, "FP16": numpy.float16, "U8": numpy.uint8, "I32": numpy.int32}


def say(answer):
    os.write(1, (json.dumps(answer) + "\n").encode())


def usage():
    """CPU and context switches of this process so far."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    switches = own.ru_nvcsw + own.ru_nivcsw
    return {"cpu_s": own.ru_utime + own.ru_stime, "switches": switches, "threads": len(os.listdir("/proc/self/task"))}


def thread_cpu():
    """CPU seconds by thread id."""
    tick = os.sysconf("SC_CLK_TCK")
    times = {}
    for task in os.listdir("/proc/self/task"):
        try:
            with open("/proc/self/task/%s/stat" % task) as stat:
                fields = stat.read().rpartition(")")[2].split()
        except OSError:
            continue
        times[int(task)] = (int(fields[11]) + int(fields[12])) / tick
    return times


def network(core, name):
    """A network by the name of a file, or one of those that are made here, all with fixed random weights."""
    if os.path.exists(name):
        return core.read_network(name)
    import ngraph
    from ngraph.impl import Function

    random = numpy.random.RandomState(7)

    def weights(*shape):
        scale = 1.0 / numpy.sqrt(numpy.prod(shape[1:]))
        return ngraph.constant((random.standard_normal(shape) * scale).astype(numpy.float32))

    def data(shape, label):
        return ngraph.parameter(shape, dtype=numpy.float32, name=label)

    def convolution(node, channels_in, channels_out, stride=1):
        pads = [1, 1]
        out = ngraph.convolution(node, weights(channels_out, channels_in, 3, 3), [stride, stride], pads, pads, [1, 1])
        return ngraph.relu(out)

    if name == "two-in-two-out":
        a, b = data([1, 3, 16, 16], "a"), data([1, 3, 16, 16], "b")
        joined = convolution(ngraph.add(a, b), 3, 8)
        left = ngraph.relu(ngraph.convolution(joined, weights(4, 8, 3, 3), [1, 1], [1, 1], [1, 1], [1, 1]), name="left")
        right = ngraph.relu(ngraph.convolution(joined, weights(6, 8, 3, 3), [2, 2], [1, 1], [1, 1], [1, 1]), name="right")
        function = Function([ngraph.result(left), ngraph.result(right)], [a, b], name)
    elif name == "fire":
        x = data([1, 3, 48, 48], "data")
        out = ngraph.max_pool(convolution(x, 3, 16, 2), [2, 2], [0, 0], [0, 0], [2, 2])
        squeezed = ngraph.relu(ngraph.convolution(out, weights(8, 16, 1, 1), [1, 1], [0, 0], [0, 0], [1, 1]))
        wide = ngraph.relu(ngraph.convolution(squeezed, weights(16, 8, 1, 1), [1, 1], [0, 0], [0, 0], [1, 1]))
        out = ngraph.concat([wide, convolution(squeezed, 8, 16)], 1)
        out = ngraph.add(convolution(out, 32, 32), out)
        flat = ngraph.reshape(out, ngraph.constant(numpy.array([1, 32 * 144])), False)
        out = ngraph.matmul(flat, weights(20, 32 * 144), False, True)
        function = Function([ngraph.result(ngraph.softmax(out, 1, name="prob"))], [x], name)
    elif name == "depthwise":
        x = data([1, 16, 24, 24], "data")
        out = ngraph.group_convolution(x, weights(16, 1, 1, 3, 3), [1, 1], [1, 1], [1, 1], [1, 1])
        out = ngraph.clamp(ngraph.multiply(out, ngraph.constant(numpy.float32(3.0))), 0.0, 6.0)
        out = ngraph.convolution(out, weights(24, 16, 1, 1), [1, 1], [0, 0], [0, 0], [1, 1])
        function = Function([ngraph.result(ngraph.sigmoid(out, name="prob"))], [x], name)
    elif name == "large-blob":
        x = data([1, 2048], "data")
        out = ngraph.matmul(x, weights(5632, 2048), False, True)
        function = Function([ngraph.result(ngraph.relu(out, name="prob"))], [x], name)
    elif name == "large-input":
        x = data([1, 3, 1024, 1024], "data")
        out = ngraph.max_pool(x, [4, 4], [0, 0], [0, 0], [4, 4])
        function = Function([ngraph.result(ngraph.relu(out, name="prob"))], [x], name)
    else:
        raise ValueError("no network " + name)
    return IENetwork(Function.to_capsule(function))


def numbers(kind, count, seed):
    """The same inputs as `ours` makes: bytes by a rule, small floats by the same rule."""
    at = numpy.arange(count, dtype=numpy.uint64)
    raw = (at * 31 + seed * 7 + seed // 251) % 256
    if kind == numpy.uint8:
        return raw.astype(numpy.uint8)
    return ((raw.astype(numpy.float32) - 128.0) / 256.0).astype(kind)


class Client:
    def __init__(self):
        self.core = IECore()
        self.graphs = {}
        self.networks = {}

    def do_devices(self, step):
        return {"devices": sorted(self.core.available_devices)}

    def do_config(self, step):
        self.core.set_config(step["set"], "MYRIAD")
        return {}

    def device(self, step):
        name = step.get("device", "MYRIAD")
        if isinstance(name, int):
            found = [d for d in self.core.get_metric("MYRIAD", "AVAILABLE_DEVICES")]
            name = "MYRIAD." + sorted(found)[name]
        elif name == "MULTI":
            found = sorted(self.core.get_metric("MYRIAD", "AVAILABLE_DEVICES"))
            name = "MULTI:" + ",".join("MYRIAD." + d for d in found)
        return name

    def do_load(self, step):
        began = time.monotonic()
        device = self.device(step)
        options = {"num_requests": step.get("requests", 1)}
        if step.get("config"):
            options["config"] = step["config"]
        if "blob" in step:
            graph = self.core.import_network(model_file=step["blob"], device_name=device, **options)
        else:
            net = network(self.core, step["network"])
            if "batch" in step:
                net.batch_size = step["batch"]
            for info in net.input_info.values():
                info.precision = step.get("input", "FP16")
            if device != "CPU":
                for info in net.outputs.values():
                    info.precision = step.get("output", "FP16")
            graph = self.core.load_network(network=net, device_name=device, **options)
            self.networks[step["graph"]] = step
        self.graphs[step["graph"]] = graph
        return {"device": device, "seconds": time.monotonic() - began, "optimal": optimal(graph)}

    def do_export(self, step):
        self.graphs[step["graph"]].export(step["to"])
        return {"bytes": os.path.getsize(step["to"])}

    def inputs(self, graph, seed):
        made = {}
        for name, info in sorted(graph.input_info.items()):
            shape = info.input_data.shape
            count = int(numpy.prod(shape))
            made[name] = numbers(TYPES[info.precision], count, seed).reshape(shape)
            seed += 100
        return made

    def fill(self, graph, request, seed):
        # Not by infer(inputs): the wheel's Python then sends the bits of FP16 inputs, taken for integers, as halves.
        for name, value in self.inputs(graph, seed).items():
            request.input_blobs[name].buffer[:] = value

    def do_infer(self, step):
        """`count` inferences with `requests` in flight (0: synchronous); outputs by name, one file each."""
        graph = self.graphs[step["graph"]]
        count, in_flight = step.get("count", 1), step.get("in_flight", 0)
        outputs = {}
        began = time.monotonic()

        def keep(found):
            for name, value in found.items():
                outputs.setdefault(name, []).append(numpy.ascontiguousarray(value).tobytes())

        def finish(request):
            check(request.wait())
            keep({name: blob.buffer for name, blob in request.output_blobs.items()})

        if in_flight == 0:
            request = graph.requests[0]
            for n in range(count):
                self.fill(graph, request, n)
                request.infer()
                keep({name: blob.buffer for name, blob in request.output_blobs.items()})
        else:
            waiting = []
            for n in range(count):
                request = graph.requests[n % in_flight]
                if len(waiting) == in_flight:
                    finish(waiting.pop(0))
                self.fill(graph, request, n)
                request.async_infer()
                waiting.append(request)
            for request in waiting:
                finish(request)
        seconds = time.monotonic() - began
        files = {}
        for at, (name, values) in enumerate(sorted(outputs.items())):
            files[name] = "%s.%d" % (step["to"], at)
            with open(files[name], "wb") as file:
                for value in values:
                    file.write(value)
        return {"outputs": files, "count": count, "seconds": seconds}

    def do_cpu(self, step):
        """The same network on the CPU plugin, in FP32, as the reference of a graph that was loaded from a network."""
        source = self.networks[step["graph"]]
        net = network(self.core, source["network"])
        if "batch" in source:
            net.batch_size = source["batch"]
        kind = source.get("input", "FP16")
        for info in net.input_info.values():
            info.precision = "U8" if kind == "U8" else "FP32"
        graph = self.core.load_network(network=net, device_name="CPU")
        outputs = {}
        for n in range(step.get("count", 1)):
            given = {name: value if kind == "U8" else value.astype(numpy.float32)
                     for name, value in self.inputs(self.graphs[step["graph"]], n).items()}
            for name, value in graph.infer(given).items():
                outputs.setdefault(name, []).append(value.astype(numpy.float32).tobytes())
        files = {}
        for at, (name, values) in enumerate(sorted(outputs.items())):
            files[name] = "%s.%d" % (step["to"], at)
            with open(files[name], "wb") as file:
                file.write(b"".join(values))
        return {"outputs": files}

    def do_thermal(self, step):
        began = time.monotonic()
        return {"celsius": self.core.get_metric(self.device(step), "DEVICE_THERMAL"), "seconds": time.monotonic() - began}

    def do_counters(self, step):
        found = self.graphs[step["graph"]].requests[0].get_perf_counts()
        run = {name: row["real_time"] for name, row in found.items() if row["status"] == "EXECUTED"}
        return {"stages": len(run), "micros": sum(run.values())}

    def do_unload(self, step):
        began = time.monotonic()
        del self.graphs[step["graph"]]
        return {"seconds": time.monotonic() - began}

    def do_close(self, step):
        began = time.monotonic()
        self.graphs.clear()
        self.core.unregister_plugin("MYRIAD")
        self.core = None
        return {"seconds": time.monotonic() - began}

    def do_wait(self, step):
        time.sleep(step["seconds"])
        return {}

    def do_together(self, step):
        """Steps side by side, each on a thread of its own; how long each took."""
        answers = [None] * len(step["steps"])

        def run(at):
            time.sleep(step["steps"][at].get("after_s", 0.0))
            answers[at] = self.perform(step["steps"][at])

        threads = [threading.Thread(target=run, args=(at,)) for at in range(len(answers))]
        for thread in threads:
            thread.start()
        # How long the interpreter itself stood still, which no thread of Python can be blamed for.
        beat, last = 0.0, time.monotonic()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.005)
            now = time.monotonic()
            beat, last = max(beat, now - last), now
        return {"answers": answers, "beat_gap_s": beat}

    def do_bench(self, step):
        """For so many seconds, `in_flight` at a time (0: synchronous); the inputs lie in the requests already. One inference
        that fails ends it: what was done until then counts, and the error is told."""
        graph = self.graphs[step["graph"]]
        in_flight = step.get("in_flight", 0)
        count = max(1, in_flight)
        for request in graph.requests[:count]:
            self.fill(graph, request, 1)
        latencies, gap, error = [], 0.0, None
        before, threads, began = usage(), thread_cpu(), time.monotonic()
        end, last = began + step["seconds"], began
        clock = time.perf_counter
        try:
            if in_flight == 0:
                request = graph.requests[0]
                while last < end:
                    start = clock()
                    request.infer()
                    latencies.append(clock() - start)
                    now = time.monotonic()
                    gap, last = max(gap, now - last), now
            else:
                requests, starts = graph.requests[:in_flight], [0.0] * in_flight
                for at, request in enumerate(requests):
                    starts[at] = clock()
                    request.async_infer()
                at = 0
                while last < end:
                    check(requests[at].wait())
                    now = clock()
                    latencies.append(now - starts[at])
                    starts[at] = now
                    requests[at].async_infer()
                    at = (at + 1) % in_flight
                    now = time.monotonic()
                    gap, last = max(gap, now - last), now
                for later in range(in_flight):
                    check(requests[(at + later) % in_flight].wait())
        except Exception as caught:  # the vendor raises RuntimeError and its own
            error = str(caught).strip().splitlines()[0]
        took, after, later = time.monotonic() - began, usage(), thread_cpu()
        main = os.getpid()
        answer = {
            "inferences": len(latencies),
            "seconds": took,
            "cpu_s": after["cpu_s"] - before["cpu_s"],
            "main_cpu_s": later[main] - threads[main],
            "switches": after["switches"] - before["switches"],
            "threads": after["threads"],
            "gap_s": gap,
        }
        if latencies:
            ordered = sorted(latencies)
            answer["p50_s"] = ordered[len(ordered) // 2]
            answer["p99_s"] = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
        if error:
            answer["failed"] = error
            answer["failed_after_s"] = time.monotonic() - last
        return answer

    def do_spin(self, step):
        """CPU that this process burns while nobody asks it for anything."""
        before, start = usage()["cpu_s"], time.monotonic()
        time.sleep(step["seconds"])
        # A machine that is late sleeps longer.
        return {"cpu_share": (usage()["cpu_s"] - before) / (time.monotonic() - start)}

    def perform(self, step):
        began = time.monotonic()
        try:
            return getattr(self, "do_" + step["do"])(step)
        except Exception as error:
            lines = [line for line in str(error).strip().splitlines() if line.strip()]
            return {"error": lines[-1] if lines else repr(error), "error_after_s": time.monotonic() - began}


def optimal(graph):
    try:
        return graph.get_metric("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    except Exception:
        return None


def check(status):
    if status != StatusCode.OK:
        raise RuntimeError("request ended with status %d" % status)


def perform_all(steps):
    client = Client()
    for n, step in enumerate(steps):
        say({"step": n, "do": step["do"], "at": "begin"})
        answer = client.perform(step)
        answer.update({"step": n, "do": step["do"], "at": "end"})
        say(answer)


def main():
    for line in sys.stdin:
        with open(line.strip()) as file:
            steps = json.load(file)
        perform_all(steps)
        gc.collect()
        say({"done": True})


main()
