"""Run the examples for other packages in an environment of its own, with their tests, and write down what became of it.

    python scripts/try_integrations.py -o benchmarks/integrations.md

The packages come from the Python index, at their newest versions that go with constraints.txt. PyTorch is large: where
it is installed already, --reuse adds the folder that holds it (a site-packages) behind the environment's own packages.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SECONDS = 600
"""For one example, or the tests of one package."""

PAGE = """# Other packages

The examples for other packages, run in an environment that was made for it, with the versions that were newest then.
An example is what [docs/integrations.md](../docs/integrations.md) shows; its test holds a
package's vectors against ours; that of BERTopic holds that it needs a backend.

{table}

Python {python}, torch {torch}, sentence-transformers {transformers}, {system}. Made by

```text
{command}
```

## What the examples printed
"""


@dataclass(frozen=True)
class Integration:
    """A package that takes our models.

    Attributes:
        name: for people.
        packages: on the Python index.
        example: the file among the examples.
        test: the function of ``tests/project/test_integrations.py``.
    """

    name: str
    packages: tuple[str, ...]
    example: str
    test: str


@dataclass(frozen=True)
class Outcome:
    """What became of one.

    Attributes:
        versions: of its packages, where they were installed.
        example: in words.
        test: in words.
        printed: by the example, or the end of its error.
    """

    versions: dict[str, str]
    example: str
    test: str
    printed: str

    @property
    def is_fine(self) -> bool:
        """Whether all that was run ended well."""
        return self.example == "ran" and self.test in ("passed", "no pytest")


INTEGRATIONS = (
    Integration("LangChain", ("langchain-huggingface", "langchain-core"), "from_langchain.py", "test_langchain"),
    Integration(
        "LlamaIndex",
        ("llama-index-core", "llama-index-embeddings-huggingface"),
        "from_llamaindex.py",
        "test_llamaindex",
    ),
    Integration("BERTopic", ("bertopic",), "from_bertopic.py", "test_bertopic"),
    Integration("Chroma", ("chromadb",), "from_chroma.py", "test_chroma"),
    Integration("Haystack", ("haystack-ai", "sentence-transformers-haystack"), "from_haystack.py", "test_haystack"),
    Integration("txtai", ("txtai",), "from_txtai.py", "test_txtai"),
    Integration("Qdrant", ("qdrant-client",), "from_qdrant.py", "test_qdrant"),
)


class Environment:
    """A virtual environment with this repository in it.

    Args:
        folder: of the environment; one that is there is gone on with.
        python: what makes it.
        reuse: a site-packages whose packages are there too, behind its own.
    """

    def __init__(self, folder: Path, python: str, reuse: Path | None) -> None:
        self.python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
        if not self.python.exists():
            subprocess.run([python, "-m", "venv", str(folder)], check=True)
        if reuse is not None:
            own = self.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
            (Path(own) / "reused.pth").write_text(f"{reuse.resolve()}\n", encoding="utf-8")
        else:
            self.install("torch", str(ROOT))

    def install(self, *packages: str) -> str | None:
        """Install packages by the constraints; the end of the error where it fails."""
        done = self.run("-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), *packages, seconds=3600)
        return done.stderr.strip()[-500:] if done.returncode else None

    def versions(self, packages: Sequence[str]) -> dict[str, str]:
        """Versions of packages that are installed."""
        code = (
            "import json, sys; from importlib.metadata import version\n"
            "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
        )
        found: dict[str, str] = json.loads(self.run("-c", code, *packages).stdout)
        return found

    def run(
        self, *arguments: str, seconds: float = SECONDS, cwd: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run its Python, without reports to anyone and without the hub."""
        quiet = {
            "PYTHONPATH": str(ROOT / "src"),
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "ANONYMIZED_TELEMETRY": "False",
            "HAYSTACK_TELEMETRY_ENABLED": "False",
            "TRANSFORMERS_VERBOSITY": "error",
        }
        return subprocess.run(
            [str(self.python), *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, **quiet},
            timeout=seconds,
            cwd=cwd,
            check=False,
        )


def try_one(integration: Integration, environment: Environment) -> Outcome:
    """Install its packages, run the example and the test."""
    if error := environment.install(*integration.packages):
        return Outcome({}, "not installed", "not run", error)
    versions = environment.versions(integration.packages)
    with tempfile.TemporaryDirectory() as folder:
        done = environment.run(str(ROOT / "examples" / integration.example), cwd=folder)
    example = "failed" if done.returncode else "ran"
    printed = (done.stderr.strip()[-500:] if done.returncode else done.stdout).strip()
    test = f"tests/project/test_integrations.py::{integration.test}"
    tested = environment.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", test, cwd=str(ROOT))
    if "No module named pytest" in tested.stderr:
        outcome = "no pytest"
    else:
        outcome = "failed" if tested.returncode else "skipped" if " skipped" in tested.stdout else "passed"
    return Outcome(versions, example, outcome, printed)


def to_page(outcomes: dict[str, Outcome], environment: Environment, command: str) -> str:
    """The record as Markdown."""
    rows = ["| package | versions | example | test |", "|---|---|---|---|"]
    parts = []
    for integration in INTEGRATIONS:
        if (found := outcomes.get(integration.name)) is None:
            continue
        versions = ", ".join(f"{name} {version}" for name, version in found.versions.items()) or "none"
        example = f"[{integration.example}](../examples/{integration.example}) {found.example}"
        rows.append(f"| {integration.name} | {versions} | {example} | {found.test} |")
        parts.append(f"\n{integration.name}:\n\n```text\n{found.printed}\n```\n")
    own = environment.versions(["torch", "sentence-transformers"])
    python = environment.run("-c", "import platform; print(platform.python_version())").stdout.strip()
    head = PAGE.format(
        table="\n".join(rows),
        python=python,
        torch=own["torch"],
        transformers=own["sentence-transformers"],
        system=f"{platform.system()} {platform.machine()}",
        command=command,
    )
    return head + "".join(parts)


def main(arguments: Sequence[str]) -> int:
    """Try all of them, or those that are named; how many failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    names = [integration.name for integration in INTEGRATIONS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"packages to try, of: {', '.join(names)}")
    parser.add_argument("--python", default=sys.executable, help="the Python that makes the environment")
    parser.add_argument("--reuse", type=Path, metavar="FOLDER", help="a site-packages with PyTorch to use as it is")
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="keep the environment here, and go on with it")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the record here")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in names]:
        parser.error(f"{unknown[0]!r} is unknown; legal: {', '.join(names)}")
    with tempfile.TemporaryDirectory() as spare:
        environment = Environment(given.into or Path(spare) / "environment", given.python, given.reuse)
        outcomes = {}
        for integration in INTEGRATIONS:
            if given.names and integration.name not in given.names:
                continue
            found = outcomes[integration.name] = try_one(integration, environment)
            versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
            print(f"{integration.name:12} example {found.example}, test {found.test}  {versions}", flush=True)
            if not found.is_fine:
                print(found.printed, flush=True)
        if given.output is not None:
            reuse = " --reuse SITE-PACKAGES" if given.reuse is not None else ""
            command = f"python scripts/try_integrations.py -o benchmarks/integrations.md{reuse}"
            given.output.write_text(to_page(outcomes, environment, command), encoding="utf-8")
    return sum(not found.is_fine for found in outcomes.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
