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


ALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)


class Host(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("ctx", ctypes.c_void_p), ("threads", ctypes.c_int32), ("parallel_for", ctypes.c_void_p),
                ("alloc", ALLOC), ("weights", ctypes.c_void_p), ("weights_bytes", ctypes.c_size_t)]


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
        outputs = {}
        for i, (s, t, p) in enumerate(zip(out_shapes, wanted, self.outputs)):
            # A length below 0 is one that only the run finds out: it allocates the output.
            if min(list(s)[: t.rank], default=0) >= 0:
                outputs[i] = np.empty(list(s)[: t.rank], DTYPES[p["dtype"]][1])
                t.data = outputs[i].ctypes.data
        raw = np.empty(size.value + 64, np.uint8)
        workspace = ctypes.c_void_p((raw.ctypes.data + 63) // 64 * 64)
        blocks = {}

        def alloc(_, size, align):
            block = np.empty(size + align, np.uint8)
            skip = -block.ctypes.data % align
            blocks[block.ctypes.data + skip] = block[skip:]
            return block.ctypes.data + skip

        host = Host(ctypes.sizeof(Host), None, 1, None, ALLOC(alloc), None, 0)
        self.check(self.lib.nnc_run(given, wanted, workspace, ctypes.byref(host)))
        for i, (s, t, p) in enumerate(zip(out_shapes, wanted, self.outputs)):
            if i not in outputs:
                shape, dtype = list(s)[: t.rank], DTYPES[p["dtype"]][1]
                outputs[i] = blocks[t.data][: int(np.prod(shape)) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)
        return [outputs[i] for i in range(len(self.outputs))]


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
