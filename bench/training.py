#!/usr/bin/env python3
"""A training step of nnc beside torch's, as a table of Markdown:   training.py [--nnc target/release/nnc] [--threads 1] [NAME ...]
With --curve STEPS, instead, the losses of that many steps on fresh batches: nnc's beside torch's, torch's on
two threads beside torch's on one, and both beside torch's in f64.

Both begin with the same weights and see the same batch; the error is nnc's largest difference from torch in f64 after one step (loss, weights),
relative to the weights' largest. Where rectifiers turn over by rounding, as in the residual networks, that is 1e-2, for torch in f32 too. The two
take turns, so that a machine that drifts hits both alike; a cell is the least of the rounds' medians. torch runs eagerly: Debian's python3-torch
works as it is (apt-get install python3-torch libopenblas0-pthread: its products are slow without), as does PyPI's.
"""
import argparse, json, statistics, subprocess, tempfile, time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

LAYERS = """seed = 1
module Conv(c, k, stride=1, pad=0) (x) {
  w = param [c, x.shape[1], k, k] ~ he
  b = param [c] ~ zeros
  return conv(x, w, b, strides=[stride, stride], pads=[pad, pad, pad, pad])
}
module Dense(n) (x) {
  w = param [n, x.shape[1]] ~ he
  b = param [n] ~ zeros
  return gemm(x, w, b, transB=1)
}
module ConvNorm(c, k, stride=1) (x) {
  w = param [c, x.shape[1], k, k] ~ he
  scale = param [c] ~ ones
  bias = param [c] ~ zeros
  mean = state [c] ~ zeros
  var = state [c] ~ ones
  h = conv(x, w, strides=[stride, stride], pads=[k / 2, k / 2, k / 2, k / 2])
  if training {
    y, mean_next, var_next = batch_normalization(h, scale, bias, mean, var, momentum=0.9, training_mode=1)
    mean := mean_next
    var := var_next
    return y
  }
  return batch_normalization(h, scale, bias, mean, var)
}
module Block(c, stride) (x) {
  h = relu(ConvNorm(c, 3, stride=stride, name="a")(x))
  h = ConvNorm(c, 3, name="b")(h)
  if stride != 1 || x.shape[1] != c { x = ConvNorm(c, 1, stride=stride, name="s")(x) }
  return relu(h + x)
}
"""

TRAIN = """
train on Net as net {
  data (x, y) = npz("data.npz") batch %d
  loss = softmax_cross_entropy_loss(net(x), y)
  update net.* with sgd(0.01, momentum=0.9)
  steps 1
}
"""


def dense(p, n, x):
    return F.linear(x, p[n + ".w"], p[n + ".b"])


def conv(p, n, x, **attributes):
    return F.conv2d(x, p[n + ".w"], p[n + ".b"], **attributes)


def norm(p, n, x, k, stride=1):
    h = F.conv2d(x, p[n + ".w"], stride=stride, padding=k // 2)
    return F.batch_norm(h, p[n + ".mean"], p[n + ".var"], p[n + ".scale"], p[n + ".bias"], training=True, momentum=0.1)


def lenet5(p, x):
    h = F.avg_pool2d(torch.tanh(conv(p, "c1", x, padding=2)), 2)
    h = F.avg_pool2d(torch.tanh(conv(p, "c3", h)), 2)
    h = torch.tanh(dense(p, "f5", h.flatten(1)))
    return dense(p, "out", torch.tanh(dense(p, "f6", h)))


LENET5 = """module Net(x: f32[N,1,28,28]) -> f32[N,10] {
  h = average_pool(tanh(Conv(6, 5, pad=2, name="c1")(x)), kernel_shape=[2, 2], strides=[2, 2])
  h = average_pool(tanh(Conv(16, 5, name="c3")(h)), kernel_shape=[2, 2], strides=[2, 2])
  h = tanh(Dense(120, name="f5")(flatten(h)))
  return Dense(10, name="out")(tanh(Dense(84, name="f6")(h)))
}
"""


def mlp(p, x):
    return dense(p, "c", torch.relu(dense(p, "b", torch.relu(dense(p, "a", x)))))


MLP = """module Net(x: f32[N,784]) -> f32[N,10] {
  return Dense(10, name="c")(relu(Dense(512, name="b")(relu(Dense(512, name="a")(x)))))
}
"""


def residual(p, x, stages, blocks):
    for s in range(stages):
        for i in range(blocks):
            n, stride = f"s{s}_{i}", 2 if s > 0 and i == 0 else 1
            h = norm(p, n + ".b", torch.relu(norm(p, n + ".a", x, 3, stride)), 3)
            x = torch.relu(h + (norm(p, n + ".s", x, 1, stride) if n + ".s.w" in p else x))
    return dense(p, "out", x.mean((2, 3)))


def resnet20(p, x):
    return residual(p, torch.relu(norm(p, "stem", x, 3)), 3, 3)


def resnet18(p, x):
    return residual(p, F.max_pool2d(torch.relu(norm(p, "stem", x, 7, 2)), 3, 2, 1), 4, 2)


def resnet(inputs, stem, channels, blocks, classes):
    lines = [f"module Net(x: f32[N,{inputs}]) -> f32[N,{classes}] {{", f"  h = {stem}"]
    for s, c in enumerate(channels):
        lines += [f'  h = Block({c}, {2 if s > 0 and i == 0 else 1}, name="s{s}_{i}")(h)' for i in range(blocks)]
    return "\n".join([*lines, f'  return Dense({classes}, name="out")(reduce_mean(h, axes=[2, 3], keepdims=0))', "}", ""])


RESNET20 = resnet("3,32,32", 'relu(ConvNorm(16, 3, name="stem")(x))', [16, 32, 64], 3, 10)
STEM18 = 'max_pool(relu(ConvNorm(64, 7, stride=2, name="stem")(x)), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])'
RESNET18 = resnet("3,224,224", STEM18, [64, 128, 256, 512], 2, 1000)


# ONNX's gates are input, output, forget, cell; torch's input, forget, cell, output.
GATES = [0, 2, 3, 1]


def lstm(p, x):
    h = x.transpose(0, 1)
    for n in ("l0", "l1"):
        weights = [p[f"{n}.{k}"].reshape(4, 256, -1)[GATES].reshape(1024, -1) for k in ("w", "r")]
        bias = p[n + ".b"].reshape(2, 4, 256)[:, GATES].reshape(2, 1024)
        start = torch.zeros(1, x.shape[0], 256, dtype=x.dtype)
        h, _, _ = torch._VF.lstm(h, (start, start), [*weights, bias[0], bias[1]], True, 1, 0.0, True, False, False)
    return dense(p, "out", h[-1])


LSTM = """module Lstm(n) (x) {
  w = param [1, 4 * n, x.shape[2]] ~ uniform(0.06)
  r = param [1, 4 * n, n] ~ uniform(0.06)
  b = param [1, 8 * n] ~ uniform(0.06)
  y, last, _ = lstm(x, w, r, b, hidden_size=n)
  return squeeze(y, axes=[1]), squeeze(last, axes=[0])
}
module Net(x: f32[N,64,64]) -> f32[N,10] {
  y, _ = Lstm(256, name="l0")(transpose(x, perm=[1, 0, 2]))
  _, last = Lstm(256, name="l1")(y)
  return Dense(10, name="out")(last)
}
"""

# Name, text, torch's forward, shape of a sample, classes, batch.
MODELS = [
    ("lenet5 b1", LENET5, lenet5, (1, 28, 28), 10, 1),
    ("lenet5 b8", LENET5, lenet5, (1, 28, 28), 10, 8),
    ("lenet5 b64", LENET5, lenet5, (1, 28, 28), 10, 64),
    ("mlp b128", MLP, mlp, (784,), 10, 128),
    ("resnet20 b64", RESNET20, resnet20, (3, 32, 32), 10, 64),
    ("resnet18 b8", RESNET18, resnet18, (3, 224, 224), 1000, 8),
    ("lstm b16", LSTM, lstm, (64, 64), 10, 16),
]


class Pair:
    """One model as nnc's step library and as torch's, which begin with the same weights."""

    def __init__(self, options, folder, text, forward, batch, x, y):
        self.options, self.folder, self.forward = options, folder, forward
        (folder / "net.nn").write_text(LAYERS + text + TRAIN % batch)
        np.savez(folder / "data.npz", x=x, y=y)
        self.nnc("train", folder / "net.nn", "--step", folder / "step.so")
        self.nnc("train", folder / "net.nn", "--steps", 0, "--save", folder / "start.npz")
        self.start = dict(np.load(folder / "start.npz"))

    def nnc(self, *arguments):
        return subprocess.run([self.options.nnc, *map(str, arguments)], check=True, capture_output=True, text=True)

    @staticmethod
    def trained(name):
        return not name.endswith((".mean", ".var"))

    def given(self, x, y):
        """What the first step takes."""
        velocity = {f"{n}$0": np.zeros_like(v) for n, v in self.start.items() if self.trained(n)}
        return {"x": x, "y": y, "step": np.float32(1), **self.start, **velocity}

    def step(self, given):
        """One step of nnc: its results by name."""
        np.savez(self.folder / "in.npz", **given)
        self.nnc("run", self.folder / "step.so", "-i", self.folder / "in.npz", "-o", self.folder / "out.npz", "--threads", self.options.threads)
        return dict(np.load(self.folder / "out.npz"))

    def torch(self, dtype):
        """torch's parameters, and what makes a step and returns its loss."""
        p = {n.removeprefix("net."): torch.tensor(v, dtype=dtype) for n, v in self.start.items()}
        sgd = torch.optim.SGD([v.requires_grad_() for n, v in p.items() if self.trained(n)], lr=0.01, momentum=0.9)

        def step(x, y):
            sgd.zero_grad(set_to_none=True)
            loss = F.cross_entropy(self.forward(p, x), y)
            loss.backward()
            sgd.step()
            return float(loss.detach())

        return p, step


def row(options, name, text, forward, shape, classes, batch):
    random = np.random.default_rng(0)
    x, y = random.standard_normal((batch, *shape)).astype(np.float32), random.integers(0, classes, batch)
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(options, Path(folder), text, forward, batch, x, y)
        after = pair.step(pair.given(x, y))
        wide, step = pair.torch(torch.float64)
        loss = step(torch.tensor(x, dtype=torch.float64), torch.tensor(y))
        want = {n: v.detach().numpy() for n, v in wide.items() if pair.trained(n)}
        difference = lambda n, v: float(np.abs(after["net." + n] - v).max() / max(1e-6, np.abs(v).max()))
        error = max([abs(loss - float(after["loss"])) / abs(loss), *(difference(n, v) for n, v in want.items())])
        _, step = pair.torch(torch.float32)
        xt, yt = torch.tensor(x), torch.tensor(y)
        nnc, other = [], []
        for _ in range(options.rounds):
            timing = ["--json", "--duration", options.seconds, "--threads", options.threads]
            done = pair.nnc("bench", pair.folder / "step.so", "-i", pair.folder / "in.npz", *timing)
            nnc.append(json.loads(done.stdout)["median_ms"])
            times, end = [], time.perf_counter() + options.seconds
            while len(times) < 3 or time.perf_counter() < end:
                begin = time.perf_counter()
                step(xt, yt)
                times.append(1e3 * (time.perf_counter() - begin))
            other.append(statistics.median(times))
    print(f"| {name} | {min(nnc):.3g} | {min(other):.3g} | {min(other) / min(nnc):.2f} | {error:.1e} |", flush=True)


def curve(options, name, text, forward, shape, classes, batch):
    """Losses over steps on fresh batches, whose labels a random linear map gives, so that there is something to learn."""
    random = np.random.default_rng(0)
    teacher = random.standard_normal((int(np.prod(shape)), classes)).astype(np.float32)
    batches = []
    for _ in range(options.curve):
        x = random.standard_normal((batch, *shape)).astype(np.float32)
        batches.append((x, (x.reshape(batch, -1) @ teacher).argmax(1)))
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(options, Path(folder), text, forward, batch, *batches[0])
        given, ours = pair.given(*batches[0]), []
        for i, (x, y) in enumerate(batches):
            results = pair.step({**given, "x": x, "y": y, "step": np.float32(i + 1)})
            ours.append(float(results["loss"]))
            given.update((n, v) for n, v in results.items() if n in given)
        theirs = []
        for threads, dtype in ((1, torch.float32), (2, torch.float32), (1, torch.float64)):
            torch.set_num_threads(threads)
            _, step = pair.torch(dtype)
            theirs.append([step(torch.tensor(x, dtype=dtype), torch.tensor(y)) for x, y in batches])
    torch.set_num_threads(options.threads)
    apart = lambda a, b: max(abs(x - y) / max(1.0, abs(y)) for x, y in zip(a, b))
    print(f"| {name} | {theirs[0][0]:.3f} | {statistics.mean(theirs[0][-10:]):.3f} | {apart(ours, theirs[0]):.1e} | {apart(theirs[1], theirs[0]):.1e} | {apart(ours, theirs[2]):.1e} | {apart(theirs[0], theirs[2]):.1e} |", flush=True)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("names", nargs="*", metavar="NAME", help=", ".join(m[0].replace(" ", "-") for m in MODELS))
    args.add_argument("--nnc", default="target/release/nnc")
    args.add_argument("--threads", type=int, default=1)
    args.add_argument("--rounds", type=int, default=5)
    args.add_argument("--seconds", type=float, default=1.0, help="of each of the two, in each round")
    args.add_argument("--curve", type=int, metavar="STEPS", help="compare losses over this many steps instead of times")
    options = args.parse_args()
    torch.set_num_threads(options.threads)
    if options.curve:
        print(f"torch {torch.__version__}, losses of {options.curve} steps, differences relative to the larger of the loss and 1\n")
        print("| model | first loss | mean of the last ten | nnc, torch | torch on 2 threads, on 1 | nnc, torch in f64 | torch, in f64 |\n|---|---|---|---|---|---|---|", flush=True)
    else:
        print(f"torch {torch.__version__}, {options.threads} thread(s), milliseconds a step\n")
        print("| model | nnc | torch | torch / nnc | error |\n|---|---|---|---|---|", flush=True)
    for model in MODELS:
        if not options.names or model[0].replace(" ", "-") in options.names:
            (curve if options.curve else row)(options, *model)


if __name__ == "__main__":
    main()
