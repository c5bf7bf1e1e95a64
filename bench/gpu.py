#!/usr/bin/env python3
"""All that can be checked and timed on a machine with an NVIDIA GPU, in one command of less than 8 minutes.

    bench/gpu.py [--nnc target/release/nnc] [--seconds 2]

Results of the CUDA engine are held against the JIT's. Times are of whole runs: inputs go to the device and outputs come back, for nnc
and for torch alike; torch's time on the device alone stands beside. Torch is timed where it is installed, with float32 that stays
float32 (no TF32). Exits with 1 where a result differs, with 2 where there is no GPU.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 460.0
START = time.monotonic()

# Example, options, inputs.
NETWORKS = [
    ("lenet5", ["--dim", "N=3"]),
    ("squeezenet1_1", ["--dim", "N=1"]),
    ("resnet18", ["--dim", "N=1", "--dim", "H=224", "--dim", "W=224"]),
    ("resnet18", ["--dim", "N=64", "--dim", "H=224", "--dim", "W=224"]),
    ("mobilenet_v2", ["--dim", "N=1"]),
]

PRODUCT = "module net(x: f32[{n},{n}], w: f32[{n},{n}]) -> (y: f32[{n},{n}]) {{\n  y = matmul(x, w)\n  return y\n}}\n"
FUSED = "module net(a: f32[{n}], b: f32[{n}], c: f32[{n}]) -> (y: f32[{n}]) {{\n  y = relu(a * b + c)\n  return y\n}}\n"
SOFTMAX = "module net(x: f32[{n},{n}]) -> (y: f32[{n},{n}]) {{\n  y = softmax(x, axis=1)\n  return y\n}}\n"


def call(command):
    """A command within what is left of the time."""
    left = LIMIT - (time.monotonic() - START)
    if left < 5:
        sys.exit("the time is over: " + " ".join(map(str, command)))
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=left)


def operands(torch, case, n):
    shapes = {"matmul": [(n, n), (n, n)], "fused": [(n,)] * 3, "softmax": [(n, n)]}[case]
    return [torch.rand(s) for s in shapes]


def torch_times(case, n, seconds):
    """Milliseconds of a run with copies, and of the device alone; None without torch."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    torch.backends.cuda.matmul.allow_tf32 = False
    functions = {
        "matmul": lambda x, w: x @ w,
        "fused": lambda a, b, c: torch.relu(a * b + c),
        "softmax": lambda x: torch.softmax(x, 1),
    }
    function, host = functions[case], operands(torch, case, n)
    device = [t.cuda() for t in host]

    def best(run):
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        end, times = time.monotonic() + seconds, []
        while time.monotonic() < end or not times:
            before = time.perf_counter()
            run()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - before)
        return min(times) * 1e3

    return best(lambda: function(*[t.cuda() for t in host]).cpu()), best(lambda: function(*device))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nnc", type=Path, default=ROOT / "target/release/nnc")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    a = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "small.nn").write_text(PRODUCT.format(n=64))
        first = call([a.nnc, "run", folder / "small.nn", "-i", "x=random:1", "w=random:2", "--engine", "cuda", "-o", "-"])
        if first.returncode != 0:
            print(first.stderr.strip(), file=sys.stderr)
            return 2

        def check(model, options, inputs):
            reference = folder / "reference"
            want = call([a.nnc, "run", model, *options, "-i", *inputs, "-o", reference])
            got = call([a.nnc, "run", model, *options, "-i", *inputs, "--engine", "cuda", "--expect", reference, "-o", folder / "cuda"])
            bad = want.returncode != 0 or got.returncode != 0
            print(f"{'DIFFERS' if bad else 'agrees':8} {model.stem} {' '.join(options)}", flush=True)
            if bad:
                print(want.stderr + got.stderr)
            return bad

        def bench(model, options):
            done = call([a.nnc, "bench", model, *options, "--engine", "cuda", "--duration", a.seconds, "--json"])
            return json.loads(done.stdout) if done.returncode == 0 else None

        for name, options in NETWORKS:
            failed += check(ROOT / f"examples/{name}.nn", options, ["x=random:1"])
        for case, text, n, inputs in [
            ("matmul", PRODUCT, 1000, "xw"),
            ("matmul", PRODUCT, 4096, "xw"),
            ("fused", FUSED, 1 << 26, "abc"),
            ("softmax", SOFTMAX, 4096, "x"),
        ]:
            model = folder / f"{case}.nn"
            model.write_text(text.format(n=n))
            if n < 4096:
                failed += check(model, [], [f"{x}=random:{i}" for i, x in enumerate(inputs)])
            ours, theirs = bench(model, []), torch_times(case, n, a.seconds)
            line = f"{case} {n}: nnc " + (f"{ours['min_ms']:.3f} ms" if ours else "failed")
            failed += ours is None
            print(line + (f", torch {theirs[0]:.3f} ms, on the device alone {theirs[1]:.3f} ms" if theirs else ", no torch"), flush=True)
        for name, options in NETWORKS:
            ours = bench(ROOT / f"examples/{name}.nn", options)
            failed += ours is None
            print(f"{name} {' '.join(options)}: " + (f"{ours['min_ms']:.3f} ms" if ours else "failed"), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
