"""The documentation is run: its code, its commands, its links, and its tables against the tables of the library."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import runpy
import shlex
import warnings
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from math import prod
from operator import attrgetter
from pathlib import Path
from pkgutil import resolve_name
from textwrap import dedent

import pytest
from transformers import CONFIG_MAPPING
from typer.testing import CliRunner

import valuembed
from valuembed.backbone.tracing import trace_architecture
from valuembed.cli import main as cli
from valuembed.cli.options import MEASURE
from valuembed.errors import UnsupportedModelError
from valuembed.testing import ARCHITECTURES

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "valuembed"
METHODS_PAGE = ROOT / "docs" / "methods.md"
FAMILIES_PAGE = ROOT / "docs" / "families.md"
CARD = SOURCE / "backbone" / "bundled" / "README.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), CARD]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NO_RUN = "no-run"
# Blocks that need the real decoders, which VALUEMBED_REAL names the folder of.
REAL = "real"
HUB_ID = re.compile(r"""["'][\w.-]+/[\w.-]+(?::[\w.-]+\.gguf)?["']""")
OURS = ("FutureEOL", "default layers", "MetaEOL", "mean covers", "blank text")
# In a list, a block stands as far to the right as the text of its point.
FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block: the words after the fence, its text, and the line it starts on."""

    info: list[str]
    text: str
    line: int


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [
        Block(match[2].split(), dedent(match[3]), text.count("\n", 0, match.start()) + 2)
        for match in FENCE.finditer(text)
    ]
    return [block for block in found if block.info[:1] == [language]]


def without_code(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page in a link."""
    headings = re.findall(r"^#+ (.*)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def imported(script: Path) -> list[str]:
    """The packages that a script imports."""
    nodes = list(ast.walk(ast.parse(script.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return sorted({name.partition(".")[0] for name in names})


def named_of_ours(code: str) -> list[tuple[str, str]]:
    """What code takes out of the package, as module and name: by ``from ... import``, or as ``valuembed.NAME``."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            found += [(node.module or "", alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, "__name__") for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.append((node.value.id, node.attr))
    return [(module, name) for module, name in found if module.partition(".")[0] == "valuembed"]


PYTHON_PAGES = [page for page in PAGES if blocks(page, "python")]
COMMAND_PAGES = [page for page in PAGES if blocks(page, "bash")]


def test_there_is_something_to_run() -> None:
    assert {"README.md", "docs/index.md", "docs/methods.md", "docs/choosing.md", "docs/faq.md"} <= set(
        map(named, PYTHON_PAGES)
    )
    assert len(EXAMPLES) >= 6


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_block_is_seen(page: Path) -> None:
    """A fence that the pattern does not pair leaves a line of backticks behind."""
    assert re.findall(r"^\s*(?:```|~~~).*$", without_code(page), re.MULTILINE) == []


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=named)
def test_names_in_python_blocks_are_there(page: Path) -> None:
    """Of all blocks, those that are not run among them."""
    for block in blocks(page, "python"):
        for module, name in named_of_ours(block.text):
            assert hasattr(import_module(module), name), f"{named(page)}:{block.line}: {module} has no {name}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_names_in_prose_are_there(page: Path) -> None:
    for name in re.findall(r"`(valuembed(?:\.\w+)+)", without_code(page)):
        assert resolve_name(name) is not None, f"{named(page)}: {name}"


def test_what_prose_says_a_model_has_is_there() -> None:
    pages = " ".join(map(without_code, PAGES))
    found = set(re.findall(r"`model\.([a-z_]+(?:\.[a-z_]+)*)", pages))
    assert {"report", "reader.executor.tokens_per_step"} <= found
    model = valuembed.load("bundled", "va")
    for name in sorted(found):
        attrgetter(name)(model)


def test_names_of_the_package_are_found_in_code() -> None:
    code = "import valuembed.search\nfrom valuembed.execution import no_such\nvaluembed.nor_this()"
    assert named_of_ours(code) == [
        ("valuembed.search", "__name__"),
        ("valuembed.execution", "no_such"),
        ("valuembed", "nor_this"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("page", PYTHON_PAGES, ids=named)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page share a namespace, as for someone who types them one after the other."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    # What holds for a whole process has no place in that of the tests.
    monkeypatch.setattr("valuembed.execution.tune_memory", lambda: None)
    namespace = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        if not {NO_RUN, REAL} & set(block.info):
            # Blank lines in front, so that an error names the line of the page.
            exec(compile("\n" * (block.line - 1) + block.text, named(page), "exec"), namespace)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PYTHON_PAGES if any(REAL in block.info for block in blocks(page, "python"))], ids=named
)
def test_blocks_with_a_real_decoder_print_what_the_page_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (folder := os.environ.get("VALUEMBED_REAL")):
        pytest.skip("VALUEMBED_REAL names no folder with real decoders")
    (tmp_path / "real").symlink_to(Path(folder).resolve())
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        if REAL in block.info:
            exec(compile(block.text, named(page), "exec"), namespace)
            shown = next(one for one in blocks(page, "text") if one.line > block.line)
            got, expected = (re.findall(r"-?\d+(?:\.\d+)?", text) for text in (capsys.readouterr().out, shown.text))
            # Precision differs from one CPU to the next.
            assert [float(number) for number in got] == pytest.approx([float(number) for number in expected], abs=0.02)


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=named)
def test_only_blocks_that_need_the_network_are_not_run(page: Path) -> None:
    for block in blocks(page, "python"):
        assert block.info in (["python"], ["python", NO_RUN], ["python", REAL]), (
            f"{named(page)}:{block.line}: {block.info}"
        )
        compile(block.text, named(page), "exec")
        names_a_hub_id = bool(HUB_ID.search(block.text))
        assert (NO_RUN in block.info) == (names_a_hub_id and REAL not in block.info), (
            f"{named(page)}:{block.line}: a hub id and {NO_RUN} go together"
        )


@pytest.mark.slow
@pytest.mark.parametrize("page", COMMAND_PAGES, ids=named)
def test_commands_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that name a hub id are only parsed; ``make`` has the targets that are named."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    targets = set(re.findall(r"^(\w+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for line in (line for block in blocks(page, "bash") for line in block.text.splitlines()):
        program, *arguments = shlex.split(line, comments=True) or [""]
        if program == "make":
            assert set(arguments) <= targets, line
        elif program == "valuembed":
            needs_network = any(
                re.fullmatch(r"[\w-]+/[\w.-]+(:[\w.-]+)?", argument)
                for argument in arguments
                if "examples" not in argument
            )
            result = CliRunner().invoke(cli.app, [*arguments, "--help"] if needs_network else arguments)
            assert result.exit_code == 0, f"{line}\n{result.output}"


@pytest.mark.slow
def test_first_page_promises_the_hit_that_its_search_finds(tmp_path: Path) -> None:
    page = ROOT / "docs" / "index.md"
    commands = next(block.text for block in blocks(page, "bash") if "valuembed search" in block.text)
    embed, query = (shlex.split(line)[1:] for line in commands.splitlines())
    vectors = str(tmp_path / "sentences.parquet")
    assert CliRunner().invoke(cli.app, ["embed", str(ROOT / embed[1]), "-o", vectors]).exit_code == 0
    found = CliRunner().invoke(cli.app, ["search", query[1], "--in", vectors, "-k", "1", "--json"])
    assert json.loads(found.stdout)[0]["text"] == blocks(page, "text")[0].text.strip()


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=named)
def test_examples_run(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(example.read_text(encoding="utf-8").splitlines()) < 40
    if absent := [name for name in imported(example) if find_spec(name) is None]:
        pytest.skip(f"not installed: {', '.join(absent)}")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        if example.stem.startswith("from_"):
            # Other packages are full of warnings that are for their authors.
            warnings.simplefilter("ignore")
        runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.strip()
    assert not list(tmp_path.iterdir()), "an example leaves nothing behind"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        aim = (page.parent / path).resolve() if path else page
        assert aim.exists(), f"{named(page)} links to {target}"
        assert aim.is_relative_to(ROOT), f"{named(page)} links out of the repository: {target}"
        if anchor:
            assert anchor in anchors(aim), f"{named(page)} links to {target}; headings are {sorted(anchors(aim))}"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def table(page: Path, heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, without its header."""
    section = page.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2]
    rows = []
    for line in section.splitlines():
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            break
    return rows[2:]


def in_backticks(cells: list[str]) -> list[str]:
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def test_methods_page_lists_every_method() -> None:
    assert in_backticks([row[0] for row in table(METHODS_PAGE, "Methods")]) == list(valuembed.METHODS)


def test_widths_of_methods_are_the_models() -> None:
    for method, _, _, width, _ in table(METHODS_PAGE, "Methods"):
        found = valuembed.info("bundled", method=method.strip("`"))
        letters = {"g": found.value_heads, "h": found.query_heads, "d": found.head_width, "m": found.model_width}
        products = [prod(letters[letter] for letter in part.split("*")) for part in width.split(" + ")]
        assert sum(products) == found.width, method


def test_methods_page_names_every_template() -> None:
    rows = [row[0] for row in table(METHODS_PAGE, "Templates")]
    assert [name for name in valuembed.TEMPLATES if f'`"{name}"`' not in "".join(rows)] == []


def test_families_page_lists_the_families_that_are_tested() -> None:
    rows = table(FAMILIES_PAGE, "Supported families")
    assert sorted(in_backticks([row[1] for row in rows])) == sorted(ARCHITECTURES)


@pytest.mark.slow
def test_families_page_lists_what_is_refused() -> None:
    section = FAMILIES_PAGE.read_text(encoding="utf-8").partition("\n## Refused\n")[2]
    refused = re.findall(
        r"`(\w+)`", "".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| `"))
    )
    assert {"bloom", "diffllama", "gemma3n_text", "bert"} <= set(refused)
    for architecture in refused:
        with pytest.raises(UnsupportedModelError, match=f"^{architecture}: "):
            trace_architecture(CONFIG_MAPPING[architecture]())


def test_layers_table_is_right() -> None:
    """Every row of the table on the choosing page, on the bundled model's twelve layers."""
    for forms, _, expected in table(ROOT / "docs" / "choosing.md", "Layers"):
        for form in in_backticks([forms]):
            spec = eval(form)
            with contextlib.suppress(ValueError):
                shown = valuembed.info("bundled", layers=spec).chosen_layers
                ends = expected.split("-")
                meant = range(int(ends[0]), int(ends[1]) + 1) if len(ends) == 2 else map(int, expected.split(","))
                assert shown == tuple(meant), form
                continue
            assert expected == "an error", form


@pytest.mark.parametrize("page", ["README.md", "docs/methods.md"])
def test_what_is_ours_is_said(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    text = " ".join(text.split("Ours, where" if page == "README.md" else "## What is ours")[1].split()).lower()
    assert [claim for claim in OURS if claim.lower() not in text.replace("span of a mean", "mean covers")] == []


@pytest.mark.parametrize(("page", "least"), [("command-line.md", 4), ("evaluation.md", 7)])
def test_every_command_has_a_section_of_its_page(page: str, least: int) -> None:
    """Those that measure stand on the page about evaluation, the others on that of the command line."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    entries = [*cli.app.registered_commands, *cli.app.registered_groups]
    measures = page == "evaluation.md"
    commands = [
        entry.name or getattr(entry.callback, "__name__", "")
        for entry in entries
        if (entry.rich_help_panel == MEASURE) == measures
    ]
    assert [name for name in commands if f"\n## {name}\n" not in text] == []
    assert len(commands) >= least


def test_the_sample_file_is_large_enough() -> None:
    lines = (ROOT / "examples" / "sentences.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) >= 100
    assert all(line.strip() for line in lines)
