#!/usr/bin/env python3
"""Gradients of nnc beside those of torch's autograd and of onnx-ad, on the same ONNX files and numbers:

    python3 tests/oracles.py [--nnc target/release/nnc]

LeNet-5 with its loss, a residual block with batch normalisation in training mode, an LSTM. An oracle that is not installed is named and left
out (Debian: python3-torch, python3-onnx; PyPI: onnx-ad==0.3.0 with onnx and onnxruntime); the status is 1 where one disagrees by more than
--rtol of a gradient's largest element.
"""
import argparse, subprocess, sys, tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.parser

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'

LENET5 = HEAD + """lenet5 (float[4,1,28,28] x, int64[4] y, float[6,1,5,5] w1, float[6] b1, float[16,6,5,5] w2, float[16] b2, float[120,400] w3, float[120] b3,
                 float[84,120] w4, float[84] b4, float[10,84] w5, float[10] b5) => (float loss) {
  c1 = Conv<pads=[2,2,2,2]>(x, w1, b1)
  t1 = Tanh(c1)
  s1 = AveragePool<kernel_shape=[2,2], strides=[2,2]>(t1)
  c2 = Conv(s1, w2, b2)
  t2 = Tanh(c2)
  s2 = AveragePool<kernel_shape=[2,2], strides=[2,2]>(t2)
  f = Flatten(s2)
  g3 = Gemm<transB=1>(f, w3, b3)
  t3 = Tanh(g3)
  g4 = Gemm<transB=1>(t3, w4, b4)
  t4 = Tanh(g4)
  scores = Gemm<transB=1>(t4, w5, b5)
  loss = SoftmaxCrossEntropyLoss<reduction="mean">(scores, y)
}"""

# Written out, so that every oracle has rules for it: the mean and variance are those of the batch.
BLOCK = HEAD + """block (float[4,8,6,6] x, float[8,8,3,3] wa, float[1,8,1,1] sa, float[1,8,1,1] ba, float[8,8,3,3] wb, float[1,8,1,1] sb, float[1,8,1,1] bb) => (float loss) {
  eps = Constant<value = float {1e-5}>()
  ca = Conv<pads=[1,1,1,1]>(x, wa)
  ma = ReduceMean<axes=[0,2,3]>(ca)
  da = Sub(ca, ma)
  qa = Mul(da, da)
  va = ReduceMean<axes=[0,2,3]>(qa)
  ea = Add(va, eps)
  ra = Sqrt(ea)
  na = Div(da, ra)
  ya = Mul(na, sa)
  za = Add(ya, ba)
  ha = Relu(za)
  cb = Conv<pads=[1,1,1,1]>(ha, wb)
  mb = ReduceMean<axes=[0,2,3]>(cb)
  db = Sub(cb, mb)
  qb = Mul(db, db)
  vb = ReduceMean<axes=[0,2,3]>(qb)
  eb = Add(vb, eps)
  rb = Sqrt(eb)
  nb = Div(db, rb)
  yb = Mul(nb, sb)
  zb = Add(yb, bb)
  sum = Add(zb, x)
  h = Relu(sum)
  square = Mul(h, h)
  loss = ReduceMean<keepdims=0>(square)
}"""

LSTM = HEAD + """lstm (float[7,3,5] x, float[1,24,5] w, float[1,24,6] r, float[1,48] b) => (float loss) {
  y, last, cell = LSTM<hidden_size=6>(x, w, r, b)
  square = Mul(y, y)
  loss = ReduceMean<keepdims=0>(square)
}"""


def torch_lenet5(t, F, torch):
    h = F.avg_pool2d(torch.tanh(F.conv2d(t["x"], t["w1"], t["b1"], padding=2)), 2)
    h = F.avg_pool2d(torch.tanh(F.conv2d(h, t["w2"], t["b2"])), 2).flatten(1)
    h = torch.tanh(F.linear(torch.tanh(F.linear(h, t["w3"], t["b3"])), t["w4"], t["b4"]))
    return F.cross_entropy(F.linear(h, t["w5"], t["b5"]), t["y"])


def torch_block(t, F, torch):
    norm = lambda x, s, b: F.batch_norm(x, None, None, s.flatten(), b.flatten(), training=True)
    h = torch.relu(norm(F.conv2d(t["x"], t["wa"], padding=1), t["sa"], t["ba"]))
    h = torch.relu(norm(F.conv2d(h, t["wb"], padding=1), t["sb"], t["bb"]) + t["x"])
    return (h * h).mean()


def torch_lstm(t, F, torch):
    # ONNX's gates are input, output, forget, cell; torch's input, forget, cell, output.
    order = [0, 2, 3, 1]
    w, r = (t[k].reshape(4, 6, -1)[order].reshape(24, -1) for k in "wr")
    b = t["b"].reshape(2, 4, 6)[:, order].reshape(2, 24)
    start = torch.zeros(1, 3, 6, dtype=t["x"].dtype)
    y, _, _ = torch._VF.lstm(t["x"], (start, start), [w, r, b[0], b[1]], True, 1, 0.0, True, False, False)
    return (y * y).mean()


MODELS = [("LeNet-5 and loss", LENET5, torch_lenet5), ("residual block", BLOCK, torch_block), ("LSTM", LSTM, torch_lstm)]


def by_torch(model, values, forward):
    import torch
    import torch.nn.functional as F

    # In f64: an oracle is to be nearer to the truth than what it judges.
    t = {n: torch.tensor(v if v.dtype == np.int64 else v.astype(np.float64)) for n, v in values.items()}
    wrt = [v.requires_grad_() for v in t.values() if v.is_floating_point()]
    forward(t, F, torch).backward()
    return {n: v.grad.numpy() for n, v in t.items() if v.is_floating_point()}


def by_onnx_ad(model, values, _):
    import onnx_ad
    import onnxruntime as ort

    adjoint = onnx_ad.reverse(model, layout="onnx")
    session = ort.InferenceSession(adjoint.SerializeToString(), providers=["CPUExecutionProvider"])
    given = dict(values)
    for port in session.get_inputs():
        if port.name not in given:
            # The seed of the loss; the result itself, which some forms ask for, is not read.
            shape = [d if isinstance(d, int) else 1 for d in port.shape]
            given[port.name] = np.ones(shape, np.float32)
    names = [o.name for o in session.get_outputs()]
    results = dict(zip(names, session.run(None, given)))
    return {n: results[f"adj_{n}"].reshape(v.shape) for n, v in values.items() if f"adj_{n}" in results}


def by_nnc(options, file, values, folder):
    wrt = [n for n, v in values.items() if v.dtype == np.float32]
    call = lambda *a: subprocess.run([options.nnc, *map(str, a)], check=True)
    np.savez(folder / "in.npz", **values)
    call("grad", file, "--wrt", ",".join(wrt), "--of", "loss", "-o", folder / "grad.onnx")
    call("run", folder / "grad.onnx", "-i", folder / "in.npz", "-o", folder / "out.npz", "--threads", 1)
    results = np.load(folder / "out.npz")
    return {n: results[f"{n}_grad"] for n in wrt}


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--nnc", default="target/release/nnc")
    args.add_argument("--rtol", type=float, default=1e-5)
    options = args.parse_args()
    bad, held = False, 0
    for title, text, forward in MODELS:
        model = onnx.parser.parse_model(text)
        onnx.checker.check_model(model)
        random = np.random.default_rng(7)
        values = {}
        for port in model.graph.input:
            shape = [d.dim_value for d in port.type.tensor_type.shape.dim]
            integers = port.type.tensor_type.elem_type == onnx.TensorProto.INT64
            values[port.name] = random.integers(0, 10, shape) if integers else (0.4 * random.standard_normal(shape)).astype(np.float32)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            onnx.save(model, str(file))
            ours = by_nnc(options, file, values, Path(folder))
        for name, oracle in (("torch", by_torch), ("onnx-ad", by_onnx_ad)):
            try:
                theirs = oracle(model, values, forward)
            except ImportError as e:
                print(f"{title}: {name} is left out ({e})")
                continue
            missing = set(ours) - set(theirs)
            worst = max((float(np.abs(ours[n] - g).max() / np.abs(g).max()), n) for n, g in theirs.items() if n in ours)
            held += 1
            bad |= worst[0] > options.rtol or bool(missing)
            print(f"{title}: {len(theirs)} gradients of {name}, largest difference {worst[0]:.1e} ({worst[1]}){' missing ' + str(missing) if missing else ''}")
    if held == 0:
        sys.exit("no oracle is installed")
    sys.exit(int(bad))


if __name__ == "__main__":
    main()
