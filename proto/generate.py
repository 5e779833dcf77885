"""Generates the protobuf modules and their type stubs, or checks that the committed ones are current.

usage: generate.py [--check] OUT
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent
PACKAGE = Path("distqat/v1")


def generate(out: Path) -> None:
    """Write `*_pb2.py` and `*_pb2.pyi` for every file of the package into `out`, importable as `distqat.pb`."""
    sources = sorted((ROOT / PACKAGE).glob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch) / "proto" / "distqat" / "pb"
        staged.mkdir(parents=True)
        for source in sources:
            # Generated modules live in distqat.pb, so the import paths say the same.
            text = source.read_text().replace('import "distqat/v1/', 'import "distqat/pb/')
            (staged / source.name).write_text(text)
        root = staged.parent.parent
        plugin = Path(sys.executable).parent / "protoc-gen-mypy"
        arguments = ["protoc", f"-I{root}", f"--plugin=protoc-gen-mypy={plugin}", f"--python_out={scratch}"]
        arguments += [f"--mypy_out=quiet:{scratch}", *(str(path) for path in sorted(staged.glob("*.proto")))]
        if protoc.main(arguments) != 0:
            raise SystemExit("protoc failed")
        out.mkdir(parents=True, exist_ok=True)
        for stale in out.glob("*_pb2.py*"):
            stale.unlink()
        for made in sorted((Path(scratch) / "distqat" / "pb").glob("*_pb2.py*")):
            (out / made.name).write_text(made.read_text())


def check(out: Path) -> None:
    """Fail, naming the files, when the committed modules differ from freshly generated ones."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = {path.name: path.read_text() for path in Path(scratch).glob("*_pb2.py*")}
        committed = {path.name: path.read_text() for path in out.glob("*_pb2.py*")}
    differing = sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))
    if differing:
        raise SystemExit(f"generated code is not current: {', '.join(differing)}; run `make proto` and commit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    (check if arguments.check else generate)(arguments.out)


if __name__ == "__main__":
    main()
