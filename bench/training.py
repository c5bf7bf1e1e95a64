#!/usr/bin/env python3
"""A training step of nnc beside torch's and JAX's, as a table of Markdown:   training.py [--nnc target/release/nnc] [--threads 1 --threads 2] [NAME ...]
With --curve STEPS, instead, the losses of that many steps on fresh batches: nnc's beside torch's, torch's on
two threads beside torch's on one, and both beside torch's in f64. A rectifier whose input is all but 0 turns over by rounding, and the losses part:
over 200 steps of the MLP torch 2.15 in f32 is 3.3e-3 from f64, and 1.6e-4 from itself on two threads; LeNet-5, without rectifiers, stays within 3e-7.

All begin with the same weights and see the same batch; the error is nnc's largest difference from torch in f64 after one step (loss, weights),
relative to the weights' largest. Where rectifiers turn over by rounding, as in the residual networks, that is 1e-2, for torch in f32 too.
Peers are torch as it runs eagerly, `torch.compile` of forward and backward, and `jax.jit` of the whole step; each is a process with as many
threads as nnc has (JAX: on as many CPUs). They take turns, so that a machine that drifts hits all alike; a cell is the least of the rounds' medians. A
peer that is not installed, or that fails, is named below the table. Which versions ran is said above it.

torch: Debian's python3-torch works as it is (apt-get install python3-torch libopenblas0-pthread: its products are slow without), as does PyPI's,
which wants its CUDA libraries, or others of their names. JAX: pip install jax.
"""
import argparse, json, multiprocessing, os, statistics, subprocess, tempfile, time
from pathlib import Path

import numpy as np

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


# Forward passes, over the operations of a peer (`o`: Torch, Jax) and parameters by name.


def dense(o, p, n, x):
    return o.linear(x, p[n + ".w"], p[n + ".b"])


def lenet5(o, p, x):
    h = o.average_pool(o.tanh(o.conv(x, p["c1.w"], p["c1.b"], 1, 2)), 2)
    h = o.average_pool(o.tanh(o.conv(h, p["c3.w"], p["c3.b"], 1, 0)), 2)
    h = o.tanh(dense(o, p, "f5", h.reshape(h.shape[0], -1)))
    return dense(o, p, "out", o.tanh(dense(o, p, "f6", h)))


LENET5 = """module Net(x: f32[N,1,28,28]) -> f32[N,10] {
  h = average_pool(tanh(Conv(6, 5, pad=2, name="c1")(x)), kernel_shape=[2, 2], strides=[2, 2])
  h = average_pool(tanh(Conv(16, 5, name="c3")(h)), kernel_shape=[2, 2], strides=[2, 2])
  h = tanh(Dense(120, name="f5")(flatten(h)))
  return Dense(10, name="out")(tanh(Dense(84, name="f6")(h)))
}
"""


def mlp(o, p, x):
    return dense(o, p, "c", o.relu(dense(o, p, "b", o.relu(dense(o, p, "a", x)))))


MLP = """module Net(x: f32[N,784]) -> f32[N,10] {
  return Dense(10, name="c")(relu(Dense(512, name="b")(relu(Dense(512, name="a")(x)))))
}
"""


def norm(o, p, n, x, k, stride=1):
    h = o.conv(x, p[n + ".w"], None, stride, k // 2)
    return o.batch_norm(h, *(p[f"{n}.{part}"] for part in ("scale", "bias", "mean", "var")))


def residual(o, p, x, stages, blocks):
    for s in range(stages):
        for i in range(blocks):
            n, stride = f"s{s}_{i}", 2 if s > 0 and i == 0 else 1
            h = norm(o, p, n + ".b", o.relu(norm(o, p, n + ".a", x, 3, stride)), 3)
            x = o.relu(h + (norm(o, p, n + ".s", x, 1, stride) if n + ".s.w" in p else x))
    return dense(o, p, "out", x.mean((2, 3)))


def resnet20(o, p, x):
    return residual(o, p, o.relu(norm(o, p, "stem", x, 3)), 3, 3)


def resnet18(o, p, x):
    return residual(o, p, o.max_pool(o.relu(norm(o, p, "stem", x, 7, 2)), 3, 2, 1), 4, 2)


def resnet(inputs, stem, channels, blocks, classes):
    lines = [f"module Net(x: f32[N,{inputs}]) -> f32[N,{classes}] {{", f"  h = {stem}"]
    for s, c in enumerate(channels):
        lines += [f'  h = Block({c}, {2 if s > 0 and i == 0 else 1}, name="s{s}_{i}")(h)' for i in range(blocks)]
    return "\n".join([*lines, f'  return Dense({classes}, name="out")(reduce_mean(h, axes=[2, 3], keepdims=0))', "}", ""])


RESNET20 = resnet("3,32,32", 'relu(ConvNorm(16, 3, name="stem")(x))', [16, 32, 64], 3, 10)
STEM18 = 'max_pool(relu(ConvNorm(64, 7, stride=2, name="stem")(x)), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])'
RESNET18 = resnet("3,224,224", STEM18, [64, 128, 256, 512], 2, 1000)


def lstm(o, p, x):
    h = x.swapaxes(0, 1)
    for n in ("l0", "l1"):
        h = o.lstm(h, *(p[f"{n}.{part}"] for part in "wrb"))
    return dense(o, p, "out", h[-1])


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

# Name, text, forward, shape of a sample, classes, batch.
MODELS = [
    ("lenet5 b1", LENET5, lenet5, (1, 28, 28), 10, 1),
    ("lenet5 b8", LENET5, lenet5, (1, 28, 28), 10, 8),
    ("lenet5 b64", LENET5, lenet5, (1, 28, 28), 10, 64),
    ("mlp b128", MLP, mlp, (784,), 10, 128),
    ("resnet20 b64", RESNET20, resnet20, (3, 32, 32), 10, 64),
    ("resnet18 b8", RESNET18, resnet18, (3, 224, 224), 1000, 8),
    ("lstm b1", LSTM, lstm, (64, 64), 10, 1),
    ("lstm b16", LSTM, lstm, (64, 64), 10, 16),
]


def trained(name):
    return not name.endswith((".mean", ".var"))


class Torch:
    """torch's operations, and its training step: eager, or compiled."""

    # ONNX's gates are input, output, forget, cell; torch's input, forget, cell, output.
    GATES = [0, 2, 3, 1]

    def __init__(self, forward, start, threads=1, dtype="float32", compiled=False):
        import torch

        torch.set_num_threads(threads)
        self.torch, self.f, self.dtype = torch, torch.nn.functional, getattr(torch, dtype)
        self.version = f"torch {torch.__version__}"
        self.tanh, self.relu, self.linear = torch.tanh, torch.relu, self.f.linear
        self.average_pool, self.max_pool = self.f.avg_pool2d, self.f.max_pool2d
        self.p = {n: torch.tensor(v, dtype=self.dtype) for n, v in start.items()}
        self.sgd = torch.optim.SGD([v.requires_grad_() for n, v in self.p.items() if trained(n)], lr=0.01, momentum=0.9)
        loss = lambda x, y: self.f.cross_entropy(forward(self, self.p, x), y)
        self.loss = torch.compile(loss) if compiled else loss

    def conv(self, x, w, b, stride, pad):
        return self.f.conv2d(x, w, b, stride, pad)

    def batch_norm(self, h, scale, bias, mean, var):
        return self.f.batch_norm(h, mean, var, scale, bias, training=True, momentum=0.1)

    def lstm(self, x, w, r, b):
        weights = [v.reshape(4, 256, -1)[self.GATES].reshape(1024, -1) for v in (w, r)]
        biases = b.reshape(2, 4, 256)[:, self.GATES].reshape(2, 1024)
        start = self.torch.zeros(1, x.shape[1], 256, dtype=x.dtype)
        return self.torch._VF.lstm(x, (start, start), [*weights, biases[0], biases[1]], True, 1, 0.0, True, False, False)[0]

    def put(self, x, y):
        return self.torch.tensor(x, dtype=self.dtype), self.torch.tensor(y)

    def step(self, x, y):
        self.sgd.zero_grad(set_to_none=True)
        loss = self.loss(x, y)
        loss.backward()
        self.sgd.step()
        return float(loss.detach())

    def weights(self):
        return {n: v.detach().numpy() for n, v in self.p.items() if trained(n)}


class Jax:
    """JAX's operations, and its training step as one function. XLA takes as many threads as the process has CPUs."""

    def __init__(self, forward, start, threads=1):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        import jax

        self.jax, self.lax, self.tanh, self.relu = jax, jax.lax, jax.numpy.tanh, jax.nn.relu
        self.version = f"JAX {jax.__version__}"

        def loss(p, held, x, y):
            scores = forward(self, {**p, **held}, x)
            return -jax.numpy.take_along_axis(jax.nn.log_softmax(scores), y[:, None], 1).mean()

        def step(p, velocity, held, x, y):
            value, g = jax.value_and_grad(loss)(p, held, x, y)
            velocity = {n: 0.9 * velocity[n] + g[n] for n in p}
            return {n: p[n] - 0.01 * velocity[n] for n in p}, velocity, value

        arrays = {n: jax.numpy.asarray(v) for n, v in start.items()}
        p = {n: v for n, v in arrays.items() if trained(n)}
        self.state = p, {n: jax.numpy.zeros_like(v) for n, v in p.items()}
        self.held = {n: v for n, v in arrays.items() if not trained(n)}
        self.run = jax.jit(step, donate_argnums=(0, 1))

    def linear(self, x, w, b):
        return x @ w.T + b

    def conv(self, x, w, b, stride, pad):
        y = self.lax.conv_general_dilated(x, w, (stride, stride), [(pad, pad)] * 2)
        return y if b is None else y + b[:, None, None]

    def pool(self, x, start, f, k, stride, pad):
        return self.lax.reduce_window(x, start, f, (1, 1, k, k), (1, 1, stride, stride), [(0, 0)] * 2 + [(pad, pad)] * 2)

    def average_pool(self, x, k):
        return self.pool(x, 0.0, self.lax.add, k, k, 0) / k**2

    def max_pool(self, x, k, stride, pad):
        return self.pool(x, -np.inf, self.lax.max, k, stride, pad)

    def batch_norm(self, h, scale, bias, *_):
        mean, var = h.mean((0, 2, 3), keepdims=True), h.var((0, 2, 3), keepdims=True)
        return (h - mean) * self.lax.rsqrt(var + 1e-5) * scale[:, None, None] + bias[:, None, None]

    def lstm(self, x, w, r, b):
        jnp, sigmoid = self.jax.numpy, self.jax.nn.sigmoid

        def cell(carry, gates):
            h, c = carry
            i, o, f, g = jnp.split(gates + h @ r[0].T, 4, axis=-1)
            c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
            h = sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zero = jnp.zeros((x.shape[1], 256), x.dtype)
        return self.lax.scan(cell, (zero, zero), x @ w[0].T + b[0, :1024] + b[0, 1024:])[1]

    def put(self, x, y):
        return self.jax.numpy.asarray(x), self.jax.numpy.asarray(y)

    def step(self, x, y):
        *self.state, loss = self.run(*self.state, self.held, x, y)
        return float(loss)


PEERS = {"torch": Torch, "torch.compile": lambda *a, **k: Torch(*a, compiled=True, **k), "jax": Jax}


def work(pipe, name, model, start, threads, x, y):
    """A peer in a process of its own: says its version, then for each number of seconds the median time of a step in them."""
    try:
        peer = PEERS[name](dict((m[0], m[2]) for m in MODELS)[model], start, threads=threads)
        batch = peer.put(x, y)
        peer.step(*batch)
        pipe.send(peer.version)
    except Exception as e:
        return pipe.send(e if isinstance(e, ImportError) else RuntimeError(f"{type(e).__name__}: {e}"))
    while (seconds := pipe.recv()) is not None:
        times, end = [], time.perf_counter() + seconds
        while len(times) < 3 or time.perf_counter() < end:
            begin = time.perf_counter()
            peer.step(*batch)
            times.append(1e3 * (time.perf_counter() - begin))
        pipe.send(statistics.median(times))


class Peer:
    """A peer's process; `failed` says why there is none."""

    def __init__(self, *what):
        context = multiprocessing.get_context("spawn")
        self.pipe, child = context.Pipe()
        self.process = context.Process(target=work, args=(child, *what), daemon=True)
        self.process.start()
        child.close()
        try:
            said = self.pipe.recv()
        except EOFError:
            said = RuntimeError("its process has ended")
        self.failed = said if isinstance(said, Exception) else None
        self.version = None if self.failed else said

    def time(self, seconds):
        self.pipe.send(seconds)
        return self.pipe.recv()

    def end(self):
        if not self.failed:
            self.pipe.send(None)
        self.process.join()


class Step:
    """A model as nnc's step library."""

    def __init__(self, options, folder, text, batch, x, y):
        self.options, self.folder = options, folder
        (folder / "net.nn").write_text(LAYERS + text + TRAIN % batch)
        np.savez(folder / "data.npz", x=x, y=y)
        self.nnc("train", folder / "net.nn", "--step", folder / "step.so")
        self.nnc("train", folder / "net.nn", "--steps", 0, "--save", folder / "start.npz")
        self.begin = dict(np.load(folder / "start.npz"))
        # Under the names that peers have for them.
        self.start = {n.removeprefix("net."): v for n, v in self.begin.items()}

    def nnc(self, *arguments):
        return subprocess.run([self.options.nnc, *map(str, arguments)], check=True, capture_output=True, text=True)

    def given(self, x, y):
        """What the first step takes."""
        velocity = {f"{n}$0": np.zeros_like(v) for n, v in self.begin.items() if trained(n)}
        return {"x": x, "y": y, "step": np.float32(1), **self.begin, **velocity}

    def step(self, given, threads):
        """One step: its results by name."""
        np.savez(self.folder / "in.npz", **given)
        self.nnc("run", self.folder / "step.so", "-i", self.folder / "in.npz", "-o", self.folder / "out.npz", "--threads", threads)
        return dict(np.load(self.folder / "out.npz"))

    def time(self, seconds, threads):
        done = self.nnc("bench", self.folder / "step.so", "-i", self.folder / "in.npz", "--json", "--duration", seconds, "--threads", threads)
        return json.loads(done.stdout)["median_ms"]

    def error(self, results, forward, x, y):
        """The largest difference from torch in f64."""
        wide = Torch(forward, self.start, dtype="float64")
        loss = wide.step(*wide.put(x, y))
        difference = lambda n, v: float(np.abs(results["net." + n] - v).max() / max(1e-6, np.abs(v).max()))
        return max([abs(loss - float(results["loss"])) / abs(loss), *(difference(n, v) for n, v in wide.weights().items())])


def rows(options, name, text, forward, shape, classes, batch):
    """A row for each number of threads. Gives the peers that there are none of, and why."""
    random = np.random.default_rng(0)
    x, y = random.standard_normal((batch, *shape)).astype(np.float32), random.integers(0, classes, batch)
    missing = {}
    with tempfile.TemporaryDirectory() as folder:
        step = Step(options, Path(folder), text, batch, x, y)
        for threads in options.threads:
            try:
                error = f"{step.error(step.step(step.given(x, y), threads), forward, x, y):.1e}"
            except ImportError as e:
                missing["torch in f64"], error = e, ""
            peers = {n: Peer(n, name, step.start, threads, x, y) for n in options.peers}
            missing.update((n, p.failed) for n, p in peers.items() if p.failed)
            cells = {"nnc": [], **{n: [] for n, p in peers.items() if not p.failed}}
            for _ in range(options.rounds):
                for n, times in cells.items():
                    times.append(step.time(options.seconds, threads) if n == "nnc" else peers[n].time(options.seconds))
            for peer in peers.values():
                peer.end()
            least = {n: min(times) for n, times in cells.items()}
            ratio = lambda n: f"{least[n]:.3g} ({least[n] / least['nnc']:.2f})" if n in least else ""
            print(f"| {name} | {threads} | {least['nnc']:.3g} | {' | '.join(map(ratio, options.peers))} | {error} |", flush=True)
    return missing


def curve(options, name, text, forward, shape, classes, batch):
    """Losses over steps on fresh batches, whose labels a random linear map gives, so that there is something to learn."""
    random = np.random.default_rng(0)
    batch = options.batch or batch
    teacher = random.standard_normal((int(np.prod(shape)), classes)).astype(np.float32)
    batches = []
    for _ in range(options.curve):
        x = random.standard_normal((batch, *shape)).astype(np.float32)
        batches.append((x, (x.reshape(batch, -1) @ teacher).argmax(1)))
    with tempfile.TemporaryDirectory() as folder:
        step = Step(options, Path(folder), text, batch, *batches[0])
        given, ours = step.given(*batches[0]), []
        for i, (x, y) in enumerate(batches):
            results = step.step({**given, "x": x, "y": y, "step": np.float32(i + 1)}, options.threads[0])
            ours.append(float(results["loss"]))
            given.update((n, v) for n, v in results.items() if n in given)
        theirs = []
        for threads, dtype in ((1, "float32"), (2, "float32"), (1, "float64")):
            peer = Torch(forward, step.start, threads, dtype)
            theirs.append([peer.step(*peer.put(x, y)) for x, y in batches])
    apart = lambda a, b: max(abs(x - y) / max(1.0, abs(y)) for x, y in zip(a, b))
    one, two, wide = theirs
    differences = [apart(ours, one), apart(two, one), apart(ours, wide), apart(one, wide)]
    print(f"| {name} | {one[0]:.3f} | {statistics.mean(one[-10:]):.3f} | {' | '.join(f'{d:.1e}' for d in differences)} |", flush=True)


def versions(peers):
    """Of the peers that are installed."""
    out = []
    for module in ["torch"] * any(n.startswith("torch") for n in peers) + ["jax"] * ("jax" in peers):
        said = subprocess.run([os.sys.executable, "-W", "ignore", "-c", f"import {module}; print({module}.__version__)"], capture_output=True, text=True)
        out.append(f"{module} {said.stdout.strip() or 'is not installed'}")
    return ", ".join(out)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("names", nargs="*", metavar="NAME", help=", ".join(m[0].replace(" ", "-") for m in MODELS))
    args.add_argument("--nnc", default="target/release/nnc")
    args.add_argument("--threads", type=int, action="append", help="1 and 2 without; may be given several times")
    args.add_argument("--peers", type=lambda s: s.split(","), default=list(PEERS), help=f"of {','.join(PEERS)}")
    args.add_argument("--rounds", type=int, default=5)
    args.add_argument("--seconds", type=float, default=1.0, help="of each, in each round")
    args.add_argument("--curve", type=int, metavar="STEPS", help="compare losses over this many steps instead of times")
    args.add_argument("--batch", type=int, help="another batch for --curve")
    options = args.parse_args()
    options.threads = options.threads or ([1] if options.curve else [1, 2])
    models = [m for m in MODELS if not options.names or m[0].replace(" ", "-") in options.names]
    print(f"{versions(['torch'] if options.curve else options.peers)}; ", end="")
    if options.curve:
        print(f"losses of {options.curve} steps, differences relative to the larger of the loss and 1\n")
        print("| model | first loss | mean of the last ten | nnc, torch | torch on 2 threads, on 1 | nnc, torch in f64 | torch, in f64 |\n|---|---|---|---|---|---|---|", flush=True)
        for model in models:
            curve(options, *model)
        return
    print("milliseconds a step, and how often nnc's goes into it\n")
    print(f"| model | threads | nnc | {' | '.join(options.peers)} | error |\n|---|---|---|{'---|' * len(options.peers)}---|", flush=True)
    missing = {}
    for model in models:
        missing.update(rows(options, *model))
    for peer, why in missing.items():
        print(f"\n{peer} did not run: {why}")


if __name__ == "__main__":
    main()
