#!/usr/bin/env python3
"""Runs a compiled model with nothing but ctypes and numpy:   run.py MODEL.so [INPUT.npy ...] [-o OUT.npz]

Inputs that are not given are zeros, symbolic sizes 1. As a module: Model("model.so")(x) gives a list of arrays.
"""
import argparse
import ctypes
import json
import numpy as np

DTYPES = {"f32": (1, np.float32), "u8": (2, np.uint8), "i8": (3, np.int8), "u16": (4, np.uint16), "i16": (5, np.int16), "i32": (6, np.int32),
          "i64": (7, np.int64), "bool": (9, np.bool_), "f16": (10, np.float16), "f64": (11, np.float64), "u32": (12, np.uint32), "u64": (13, np.uint64)}
MAX_RANK = 16


class Tensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("shape", ctypes.POINTER(ctypes.c_int64)), ("rank", ctypes.c_int32), ("dtype", ctypes.c_int32)]


class Model:
    """A compiled model on the caller's thread."""

    def __init__(self, path):
        self.lib = ctypes.CDLL(path if "/" in path else "./" + path)
        self.lib.nnc_describe.restype = self.lib.nnc_error.restype = ctypes.c_char_p
        about = json.loads(self.lib.nnc_describe())
        self.inputs, self.outputs = about["inputs"], about["outputs"]

    def check(self, code):
        if code:
            raise RuntimeError(f"nnc error {code}: {self.lib.nnc_error(code).decode()}")

    def __call__(self, *arrays):
        arrays = [np.ascontiguousarray(a, DTYPES[p["dtype"]][1]) for a, p in zip(arrays, self.inputs, strict=True)]
        shapes = [(ctypes.c_int64 * max(a.ndim, 1))(*a.shape) for a in arrays]
        given = (Tensor * len(arrays))(*[Tensor(a.ctypes.data, s, a.ndim, DTYPES[p["dtype"]][0]) for a, s, p in zip(arrays, shapes, self.inputs)])

        # The library says what it is going to write, and how much room it needs.
        out_shapes = [(ctypes.c_int64 * MAX_RANK)() for _ in self.outputs]
        wanted = (Tensor * len(self.outputs))(*[Tensor(None, s, MAX_RANK, DTYPES[p["dtype"]][0]) for s, p in zip(out_shapes, self.outputs)])
        size = ctypes.c_size_t()
        self.check(self.lib.nnc_plan(given, wanted, ctypes.byref(size)))
        outputs = [np.empty(list(s)[: t.rank], DTYPES[p["dtype"]][1]) for s, t, p in zip(out_shapes, wanted, self.outputs)]
        for t, a in zip(wanted, outputs):
            t.data = a.ctypes.data
        raw = np.empty(size.value + 64, np.uint8)
        workspace = ctypes.c_void_p((raw.ctypes.data + 63) // 64 * 64)
        self.check(self.lib.nnc_run(given, wanted, workspace, None))
        return outputs


if __name__ == "__main__":
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("model")
    args.add_argument("inputs", nargs="*")
    args.add_argument("-o", "--output")
    a = args.parse_args()
    model = Model(a.model)
    fixed = lambda p: [d if isinstance(d, int) else 1 for d in p["shape"]]
    given = [np.load(f) for f in a.inputs] + [np.zeros(fixed(p), DTYPES[p["dtype"]][1]) for p in model.inputs[len(a.inputs):]]
    results = model(*given)
    for p, y in zip(model.outputs, results):
        print(p["name"], y.dtype, y.shape, y.ravel()[:8])
    if a.output:
        np.savez(a.output, **{p["name"]: y for p, y in zip(model.outputs, results)})
