#!/usr/bin/env python3
"""What `nnc list-ops --json` says beside the operator schemas of the `onnx` package: every operator, every version, every type of the first input.

    python3 tests/schemas.py [--nnc target/release/nnc]

A gap that is meant to be there stands in MEANT with its reason. Others are listed, and the status is 1. Needs onnx (1.22 or newer).
"""
import argparse, collections, json, re, subprocess, sys

from onnx import defs

# (operator, type) -> why. An operator of "" stands for all.
MEANT = {
    ("", "complex64"): "there are no complex numbers; DFT and STFT have pairs of floats",
    ("", "complex128"): "there are no complex numbers",
    ("Col2Im", "string"): "overlapping strings have no sum",
}

SHORT = {"float": "f32", "double": "f64", "float16": "f16", "bfloat16": "bf16", "string": "str"}


def short(name):
    """nnc's name of an ONNX element type."""
    return SHORT.get(name) or re.sub(r"^(float|u?int)(?=\d)", lambda m: {"float": "f", "int": "i", "uint": "u"}[m[0]], name)


args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
args.add_argument("--nnc", default="target/release/nnc")
known = json.loads(subprocess.run([args.parse_args().nnc, "list-ops", "--json"], check=True, capture_output=True, text=True).stdout)
known = {(op["domain"], op["name"]): op for op in known["onnx"]}

gaps = collections.defaultdict(set)
seen = 0
for schema in defs.get_all_schemas_with_history():
    domain, name, version = schema.domain or "ai.onnx", schema.name, schema.since_version
    if schema.deprecated:
        continue
    op = known.get((domain, name))
    if op is None or not any(v["since"] <= version <= (v["until"] or version) for v in op["opsets"]):
        gaps[f"{domain}.{name}"].add(f"version {version}")
        continue
    # Operators that hold graphs take what these take.
    for spelled in schema.inputs[0].types if schema.inputs and op["element_types"] is not None else ():
        element = re.findall(r"tensor\((\w+)\)", spelled)[-1:]
        for t in element:
            seen += 1
            if short(t) not in op["element_types"] and (name, t) not in MEANT and ("", t) not in MEANT:
                gaps[f"{domain}.{name}"].add(f"{t} (version {version})")
for name, what in sorted(gaps.items()):
    print(f"{name}: {', '.join(sorted(what))}")
print(f"{seen} types of {len(known)} operators, {len(gaps)} operators with gaps")
sys.exit(bool(gaps))
