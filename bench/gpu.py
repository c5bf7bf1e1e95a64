#!/usr/bin/env python3
"""All that can be checked and timed on a machine with an NVIDIA GPU, in one command of less than 8 minutes.

    bench/gpu.py [--nnc target/release/nnc] [--seconds 1]

1. Results of the CUDA engine against the JIT's, networks and products, and of a .nncg file against both.
2. compute-sanitizer (memcheck and racecheck) over a network, where it is installed.
3. Times on the device, by its own events on both sides, so without copies to and from the host:
   f32 product 4096 against cuBLAS through torch (no TF32), bf16 product 4096 against cuBLAS bf16, an element-wise chain against the
   bandwidth of torch's copy, softmax, and ResNet-50 at batch 1 and 64 beside torch eager and torch.compile.

Each figure stands beside what is wanted of it. What cannot run here (no torch, no sanitizer, no time left) is named. Exits with 1 where
a result differs or the sanitizer finds something, with 2 where there is no GPU; a figure below its aim is reported, not an error.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 450.0
START = time.monotonic()

# Example, options.
NETWORKS = [
    ("lenet5", ["--dim", "N=3"]),
    ("squeezenet1_1", ["--dim", "N=1"]),
    ("resnet18", ["--dim", "N=1", "--dim", "H=224", "--dim", "W=224"]),
    ("mobilenet_v2", ["--dim", "N=1"]),
]

PRODUCT = "module net(x: f32[{n},{n}]) -> (y: f32[{n},{n}]) {{\n  w = param [{n},{n}] ~ he\n  y = matmul(x, w)\n  return y\n}}\n"
FUSED = "module net(a: f32[{n}], b: f32[{n}], c: f32[{n}]) -> (y: f32[{n}]) {{\n  y = relu(a * b + c)\n  return y\n}}\n"
SOFTMAX = "module net(x: f32[{n},{n}]) -> (y: f32[{n},{n}]) {{\n  y = softmax(x, axis=1)\n  return y\n}}\n"


def left():
    return LIMIT - (time.monotonic() - START)


def say(text):
    print(f"[{time.monotonic() - START:5.0f} s] {text}", flush=True)


def call(command, **options):
    """A command within what is left of the time; None where that is over."""
    if left() < 5:
        return None
    try:
        return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=left(), **options)
    except subprocess.TimeoutExpired:
        return None


def import_torch():
    try:
        import torch
    except ImportError:
        return None, "torch is not installed"
    if not torch.cuda.is_available():
        return None, "torch sees no CUDA device"
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return torch, ""


def device_ms(torch, run, seconds):
    """The median time of a run on the device, in milliseconds, by events."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    times, end = [], time.monotonic() + seconds
    while len(times) < 5 or (time.monotonic() < end and len(times) < 1000):
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        run()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after))
    return sorted(times)[len(times) // 2]


def resnet50(torch):
    """ResNet-50 as torch modules, so that torchvision is not needed."""
    nn = torch.nn

    def conv(i, o, k, stride=1):
        return [nn.Conv2d(i, o, k, stride, k // 2, bias=False), nn.BatchNorm2d(o)]

    class Block(nn.Module):
        def __init__(self, i, width, stride):
            super().__init__()
            o = 4 * width
            self.body = nn.Sequential(*conv(i, width, 1), nn.ReLU(), *conv(width, width, 3, stride), nn.ReLU(), *conv(width, o, 1))
            self.skip = nn.Sequential(*conv(i, o, 1, stride)) if stride != 1 or i != o else nn.Identity()

        def forward(self, x):
            return torch.relu(self.body(x) + self.skip(x))

    layers, i = [*conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], 64
    for width, count, stride in [(64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)]:
        for k in range(count):
            layers.append(Block(i, width, stride if k == 0 else 1))
            i = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000)).eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nnc", type=Path, default=ROOT / "target/release/nnc")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--engine", choices=["cuda", "vulkan"], default="cuda", help="of nnc; the rest is for CUDA")
    parser.add_argument("--size", type=int, default=4096, help="rows of products and of softmax")
    a = parser.parse_args()
    torch, no_torch = import_torch()
    wrong, unmet, absent = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "small.nn").write_text(PRODUCT.format(n=64))
        first = call([a.nnc, "run", folder / "small.nn", "-i", "x=random:1", "--engine", a.engine, "-o", "-"])
        if first is None or first.returncode != 0:
            print(first.stderr.strip() if first else "the first run did not end", file=sys.stderr)
            return 2

        def check(what, model, options, inputs, compiled=None, more=()):
            """Holds the device against the processor, which knows nothing of the options `more`."""
            reference = folder / "reference"
            want = call([a.nnc, "run", model, *options, "-i", *inputs, "-o", reference])
            got = call([a.nnc, "run", compiled or model, *options, "-i", *inputs, "--engine", a.engine, "--expect", reference, *more, "-o", folder / "cuda"])
            if want is None or got is None:
                return absent.append(f"{what}: no time was left")
            bad = want.returncode != 0 or got.returncode != 0
            say(f"{'DIFFERS' if bad else 'agrees':8} {what}")
            if bad:
                wrong.append(what)
                print(want.stderr + got.stderr)

        def ours(model, options=()):
            """Milliseconds of a whole run, and of its launches alone."""
            done = call([a.nnc, "bench", model, *options, "--engine", a.engine, "--profile", "--duration", a.seconds, "--json"])
            what = f"bench {model.name} {' '.join(options)}"
            if done is None:
                return absent.append(f"{what}: no time was left")
            if done.returncode != 0:
                wrong.append(what)
                return print(done.stderr)
            report = json.loads(done.stdout)
            return report["median_ms"], report["profile"]["ms"]

        def figure(what, mine, theirs, aim, unit="of torch's speed"):
            share = theirs / mine
            say(f"{what}: {mine:.3f} ms on the device, torch {theirs:.3f} ms: {100 * share:.0f} % {unit}" + (f", wanted {aim} %" if aim else ""))
            if aim and 100 * share < aim:
                unmet.append(f"{what}: {100 * share:.0f} % {unit}, {aim} % are wanted")

        # 1. Results.
        for name, options in NETWORKS:
            check(f"{name} {' '.join(options)}", ROOT / f"examples/{name}.nn", options, ["x=random:1"])
        (folder / "edges.nn").write_text(PRODUCT.format(n=1000))
        check("product 1000", folder / "edges.nn", [], ["x=random:1"])
        bf16 = a.engine == "cuda"
        if not bf16:
            absent.append("bf16 products: SPIR-V kernels compute in f32")
        else:
            check("product 1000, bf16", folder / "edges.nn", [], ["x=random:1"], more=["--precision", "bf16", "--rtol", "0.02", "--atol", "0.1"])
        (folder / "rows.nn").write_text(SOFTMAX.format(n=1000))
        check("softmax 1000", folder / "rows.nn", [], ["x=random:1"])
        lenet = ROOT / "examples/lenet5.nn"
        if (made := call([a.nnc, "compile", lenet, "-o", folder / "lenet5.nncg"])) and made.returncode == 0:
            check("lenet5.nncg", lenet, ["--dim", "N=3"], ["x=random:1"], folder / "lenet5.nncg")
        else:
            wrong.append("compile lenet5.nncg")

        # 2. The sanitizer.
        sanitizer = shutil.which("compute-sanitizer", path=os.environ.get("PATH", "") + ":/usr/local/cuda/bin")
        if sanitizer is None:
            absent.append("compute-sanitizer is not installed")
        for tool in ["memcheck", "racecheck"] if sanitizer else []:
            done = call([sanitizer, "--tool", tool, "--error-exitcode", "9", a.nnc, "run", lenet, "--dim", "N=3", "-i", "x=random:1", "--engine", a.engine, "-o", "-"])
            if done is None:
                absent.append(f"{tool}: no time was left")
                continue
            say(f"{'clean' if done.returncode == 0 else 'NOT CLEAN':8} {tool} of lenet5")
            if done.returncode != 0:
                wrong.append(f"compute-sanitizer {tool}")
                print(done.stdout[-4000:] + done.stderr[-2000:])

        # 3. Times.
        n = a.size
        (folder / "product.nn").write_text(PRODUCT.format(n=n))
        (folder / "rows4096.nn").write_text(SOFTMAX.format(n=n))
        elements = 4 * n * n
        (folder / "chain.nn").write_text(FUSED.format(n=elements))
        mine = {
            "f32": ours(folder / "product.nn"),
            "bf16": ours(folder / "product.nn", ["--precision", "bf16"]) if bf16 else None,
            "chain": ours(folder / "chain.nn"),
            "rows": ours(folder / "rows4096.nn"),
        }
        for what, t in mine.items():
            if t:
                say(f"{what}: {t[0]:.3f} ms a run with copies, {t[1]:.3f} ms on the device")
        if torch is None:
            absent.append(f"comparisons: {no_torch}")
        else:
            x, w = torch.rand(n, n, device="cuda"), torch.rand(n, n, device="cuda")
            if mine["f32"]:
                figure(f"f32 product {n}", mine["f32"][1], device_ms(torch, lambda: x @ w, a.seconds), 65, "of cuBLAS")
            if mine["bf16"]:
                xb, wb = x.bfloat16(), w.bfloat16()
                figure(f"bf16 product {n}", mine["bf16"][1], device_ms(torch, lambda: xb @ wb, a.seconds), 45, "of cuBLAS")
            if mine["rows"]:
                figure(f"softmax {n}", mine["rows"][1], device_ms(torch, lambda: torch.softmax(x, 1), a.seconds), None)
            if mine["chain"]:
                source = torch.rand(2 * elements, device="cuda")
                target = torch.empty_like(source)
                # The copy reads and writes as many bytes as the chain: three operands and a result.
                copy = device_ms(torch, lambda: target.copy_(source), a.seconds)
                figure(f"chain of {elements}", mine["chain"][1], copy, 85, "of the bandwidth of a copy")
                del source, target
        network = torch and resnet50(torch).cuda()
        for batch in [1, 64]:
            t = ours(ROOT / "examples/resnet50.nn", ["--dim", f"N={batch}"])
            if t:
                say(f"resnet50 batch {batch}: {t[0]:.3f} ms a run with copies, {t[1]:.3f} ms on the device")
            if network is None or not t:
                continue
            image = torch.rand(batch, 3, 224, 224, device="cuda")
            with torch.inference_mode():
                figure(f"resnet50 batch {batch}, torch eager", t[1], device_ms(torch, lambda: network(image), a.seconds), None)
                if left() < 100:
                    absent.append(f"torch.compile of resnet50 at batch {batch}: no time was left")
                    continue
                try:
                    compiled = torch.compile(network)
                    figure(f"resnet50 batch {batch}, torch.compile", t[1], device_ms(torch, lambda: compiled(image), a.seconds), None)
                except Exception as e:  # A machine without a C compiler, for one.
                    absent.append(f"torch.compile of resnet50 at batch {batch}: {str(e).strip().splitlines()[0]}")
    for title, list_ in [("not run", absent), ("below what is wanted", unmet), ("WRONG", wrong)]:
        for line in list_:
            print(f"{title}: {line}")
    say("done")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
