#!/usr/bin/env python3
"""nnc beside onnxruntime and OpenVINO, as a table of Markdown:   models.py [options] MODEL.onnx ...

    pip install numpy onnxruntime openvino
    python3 bench/models.py --nnc target/release/nnc --threads 1 resnet50.onnx

Runtimes take turns, so that a machine that drifts hits all alike; a cell is the least of the rounds' medians. Models have inputs of
known f32 shapes (--dim fixes symbols). A runtime that is not installed is left out. The error is the largest difference from
onnxruntime, relative to its largest result; where it is above --gate the row says so instead of a time.
"""
import argparse, json, math, statistics, subprocess, tempfile, time
from pathlib import Path


def timed(call, seconds):
    """The median of as many calls as fit, in milliseconds."""
    call()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


class Nnc:
    def __init__(self, options, model, inputs, folder):
        import numpy as np

        self.options, self.library, self.given = options, folder / "model.so", folder / "in.npz"
        np.savez(self.given, **inputs)
        dims = [part for d in options.dim for part in ("--dim", d)]
        subprocess.run([options.nnc, "compile", model, "-o", self.library, *dims, *options.flags.split()], check=True, stderr=subprocess.PIPE)

    def outputs(self):
        import numpy as np

        out = self.library.with_suffix(".npz")
        threads = ["--threads", str(self.options.threads)]
        subprocess.run([self.options.nnc, "run", self.library, "-i", self.given, "-o", out, *threads], check=True)
        return list(np.load(out).values())

    def time(self):
        command = [self.options.nnc, "bench", self.library, "-i", self.given, "--json", "--duration", str(self.options.seconds)]
        done = subprocess.run([*command, "--threads", str(self.options.threads)], check=True, capture_output=True, text=True)
        return json.loads(done.stdout)["median_ms"]


class OnnxRuntime:
    def __init__(self, options, model, inputs, folder):
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = options.threads, 1
        self.session = ort.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
        self.inputs, self.options = inputs, options

    def outputs(self):
        return self.session.run(None, self.inputs)

    def time(self):
        return timed(self.outputs, self.options.seconds)


class OpenVino:
    def __init__(self, options, model, inputs, folder):
        import openvino as ov

        core = ov.Core()
        wanted = {"INFERENCE_NUM_THREADS": options.threads, "NUM_STREAMS": 1}
        if not options.openvino_default:
            wanted["INFERENCE_PRECISION_HINT"] = "f32"
        network = core.read_model(str(model))
        network.reshape({name: list(x.shape) for name, x in inputs.items()})
        self.request = core.compile_model(network, "CPU", wanted).create_infer_request()
        self.inputs, self.options = inputs, options

    def outputs(self):
        return [v.copy() for v in self.request.infer(self.inputs).values()]

    def time(self):
        return timed(lambda: self.request.infer(self.inputs, share_inputs=True), self.options.seconds)


def made_up(model, dims):
    """Seeded inputs of the shapes that the model declares."""
    import numpy as np, onnxruntime as ort

    sizes = dict(d.split("=") for d in dims)
    random, inputs = np.random.default_rng(0), {}
    for port in ort.InferenceSession(str(model), providers=["CPUExecutionProvider"]).get_inputs():
        shape = [d if isinstance(d, int) else int(sizes.get(d, 1)) for d in port.shape]
        inputs[port.name] = random.standard_normal(shape).astype(np.float32)
    return inputs


def row(options, model):
    import numpy as np

    inputs = made_up(model, options.dim)
    with tempfile.TemporaryDirectory() as folder:
        runtimes = {}
        for name, kind in {"nnc": Nnc, "onnxruntime": OnnxRuntime, "OpenVINO": OpenVino}.items():
            try:
                runtimes[name] = kind(options, model, inputs, Path(folder))
            except ImportError:
                pass
        want = runtimes["onnxruntime"].outputs()
        most = max(float(np.abs(y).max()) for y in want) or 1.0
        errors = {n: max(float(np.abs(g - w).max()) for g, w in zip(r.outputs(), want)) / most for n, r in runtimes.items()}
        rounds = [{n: r.time() for n, r in runtimes.items()} for _ in range(options.rounds)]
    best = {n: min(r[n] for r in rounds) for n in runtimes if errors[n] <= options.gate}
    return best, errors


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("models", nargs="+", type=Path)
    args.add_argument("--nnc", default="target/release/nnc")
    args.add_argument("--flags", default="", help="options of nnc compile, e.g. --flags='--precision bf16'")
    args.add_argument("--openvino-default", action="store_true", help="OpenVINO chooses its precision: bf16 where the machine has it")
    args.add_argument("--dim", action="append", default=[], metavar="NAME=SIZE")
    args.add_argument("--threads", type=int, default=1)
    args.add_argument("--rounds", type=int, default=3)
    args.add_argument("--seconds", type=float, default=0.5, help="of each runtime and round")
    args.add_argument("--gate", type=float, default=1e-2)
    options = args.parse_args()
    peers, ratios = ["onnxruntime", "OpenVINO"], []
    print("| model | nnc | " + " | ".join(peers) + " | best peer / nnc | error |\n|---|---|" + "---|" * len(peers) + "---|---|", flush=True)
    for model in options.models:
        best, errors = row(options, model)
        cell = lambda n: f"{best[n]:.3g}" if n in best else "wrong" if n in errors else "-"
        others = [best[p] for p in peers if p in best]
        ratio = min(others) / best["nnc"] if others and "nnc" in best else None
        ratios += [ratio] if ratio else []
        shown = "-" if ratio is None else f"{ratio:.2f}"
        print(f"| {model.stem} | {cell('nnc')} | {' | '.join(map(cell, peers))} | {shown} | {errors['nnc']:.1e} |", flush=True)
    if ratios:
        print(f"\nGeometric mean of best peer / nnc: {math.exp(sum(map(math.log, ratios)) / len(ratios)):.3f}")


if __name__ == "__main__":
    main()
