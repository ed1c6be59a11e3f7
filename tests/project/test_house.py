"""The house rules that a reader cannot see by reading one file: faces, sizes, public names, an inert import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import valuembed

SOURCE = Path(valuembed.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
TESTS = Path(__file__).parents[1]
STARTING = {
    "process": re.compile(r"\bsubprocess\.(run|Popen)\(|^from shared_jobs import .*\bstart\b", re.MULTILINE),
    "browser": re.compile(r"\bbrowsing\("),
    "ray": re.compile(r"importorskip\(.ray."),
}
"""By marker, what stands in a file of tests that starts something."""
WITHOUT_A_FACE = ("_utils", "cli", "models/early_paths", "serving/playground", "serving/routes", "serving/search_page")
"""Folders whose files are imported one by one: what every room may need, what none imports, and parts of a room."""
ROOMS = sorted(path.parent for path in FILES if path.name == "__init__.py" and path.parent != SOURCE)
OF_ONE_SYSTEM = {"fcntl", "grp", "msvcrt", "posix", "pwd", "resource", "syslog", "termios", "winreg"}
FACES = {
    "valuembed." + ".".join(room.relative_to(SOURCE).parts): room
    for room in ROOMS
    if room.relative_to(SOURCE).as_posix() not in WITHOUT_A_FACE
}


@pytest.mark.parametrize("marker", STARTING)
def test_what_starts_something_is_marked(marker):
    texts = {path.name: path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py")}
    starting = {name for name, text in texts.items() if STARTING[marker].search(text)}
    assert starting
    assert [name for name in starting if f"mark.{marker}" not in texts[name]] == []


def test_the_top_folder_is_a_list_of_rooms():
    entries = [path for path in SOURCE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 24
    assert len(FACES) >= 18


@pytest.mark.parametrize("room", FACES)
def test_a_face_names_what_there_is(room):
    face = import_module(room)
    assert face.__doc__
    assert face.__all__
    assert [name for name in face.__all__ if not hasattr(face, name)] == []
    assert set(face.__all__) <= set(dir(face))


@pytest.mark.parametrize("room", FACES)
def test_no_name_of_a_face_is_one_of_its_files_too(room):
    """A file that is imported would take the name's place."""
    face = import_module(room)
    files = {path.stem for path in FACES[room].glob("*.py")}
    modules = {name for name in face.__all__ if getattr(getattr(face, name), "__file__", None)}
    assert files.intersection(face.__all__) == modules


def test_a_name_of_two_faces_is_one_thing():
    found: dict[str, list[tuple[str, object]]] = {}
    for room in FACES:
        face = import_module(room)
        for name in face.__all__:
            found.setdefault(name, []).append((room, getattr(face, name)))
    different = {
        name: [room for room, _ in homes]
        for name, homes in found.items()
        if any(thing is not homes[0][1] for _, thing in homes)
    }
    assert different == {}


def imports(path: Path) -> list[tuple[int, str]]:
    """Modules of this package that names are imported from anywhere in a file, each with its line."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: relative import"
            found.append((node.lineno, node.module or ""))
        elif isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
    return [(line, name) for line, name in found if name.split(".")[0] == "valuembed"]


def room_of(parts: tuple[str, ...]) -> str:
    """The room with a face that a file or module lies in."""
    while parts and ".".join(("valuembed", *parts)) not in FACES:
        parts = parts[:-1]
    return ".".join(("valuembed", *parts))


def behind_faces(path: Path) -> list[str]:
    """Imports that reach behind the face of another room."""
    own = room_of(path.relative_to(SOURCE).with_suffix("").parts)
    return [
        f"line {line}: {module}"
        for line, module in imports(path)
        if module not in FACES and room_of(tuple(module.split(".")[1:])) not in (own, "valuembed")
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_other_rooms_are_entered_by_their_face(path):
    assert behind_faces(path) == []


def test_the_walk_sees_every_kind_of_import(monkeypatch, tmp_path):
    file = tmp_path / "cli" / "file.py"
    file.parent.mkdir()
    file.write_text(
        "import valuembed.models.loading\n"
        "from valuembed import recipes, __version__\n"
        "from valuembed.models import load\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from valuembed.corpus.job import embed_corpus\n"
        "def late():\n    from valuembed.search.exact import search\n    import numpy\n"
    )
    monkeypatch.setitem(globals(), "SOURCE", tmp_path)
    assert behind_faces(file) == [
        "line 1: valuembed.models.loading",
        "line 6: valuembed.corpus.job",
        "line 8: valuembed.search.exact",
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_no_file_is_above_400_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_the_plan_of_the_house_names_every_room():
    plan = SOURCE.parents[1] / "ARCHITECTURE.md"
    if not plan.exists():
        pytest.skip("the package is installed without the repository around it")
    text = plan.read_text(encoding="utf-8")
    assert [room for room in ROOMS if f"`{room.relative_to(SOURCE).as_posix()}/`" not in text] == []


class TestPublicNames:
    def test_are_sixteen_at_most_and_sorted(self):
        # Constants, then classes, then functions, as the linter sorts them.
        names = [
            "METHODS",
            "TEMPLATES",
            "Recipe",
            "TruncationWarning",
            "ValueEncoder",
            "ValuembedError",
            "embed_corpus",
            "embed_file",
            "from_cache",
            "info",
            "load",
            "train",
            "watching",
            "wrap",
        ]
        assert valuembed.__all__ == names
        assert names == sorted(names, key=lambda name: (not name.isupper(), name.islower(), name))
        assert len(names) <= 16

    @pytest.mark.parametrize("name", valuembed.__all__)
    def test_resolve(self, name):
        found = getattr(valuembed, name)
        assert name in dir(valuembed)
        if callable(found):
            assert found.__name__ == name
            assert found.__module__.startswith("valuembed.")
            assert found.__doc__

    def test_others_are_an_attribute_error(self):
        with pytest.raises(AttributeError, match="module 'valuembed' has no attribute 'laod'"):
            _ = valuembed.laod

    def test_version_is_the_projects(self):
        project = SOURCE.parents[1] / "pyproject.toml"
        if not project.exists():
            pytest.skip("the package is installed without the repository around it")
        assert f'\nversion = "{valuembed.__version__}"\n' in project.read_text(encoding="utf-8")


@pytest.mark.process
def test_verbs_that_wait_for_a_model_load_no_torch():
    """Whoever asks for something that is not there, searches, or joins a job waits for no import."""
    statement = (
        "from valuembed.corpus import embed_corpus, embed_corpus_on_ray, embed_file\n"
        "from valuembed.data import read_rows\nfrom valuembed.recipes import resolve_layers\n"
        "from valuembed.search import Index, search\n"
        "from valuembed.vectors import EmbeddingFiles\nimport sys\n"
        "print([name for name in ('torch', 'transformers', 'sentence_transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


@pytest.mark.process
@pytest.mark.parametrize(
    "statement",
    [
        "import valuembed",
        # The command line prints its help from these tables.
        "import valuembed; valuembed.METHODS, valuembed.TEMPLATES, valuembed.Recipe, valuembed.ValuembedError",
        "import valuembed.cli.main",
    ],
)
def test_importing_is_inert(statement):
    heavy = ("torch", "transformers", "sentence_transformers", "tokenizers", "numpy")
    check = f"import sys; {statement}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_no_module_of_one_system_is_imported():
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [(path.name, name) for name in names if name in OF_ONE_SYSTEM]
    assert found == []
