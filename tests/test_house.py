"""The house rules that a reader cannot see by reading one file: levels, sizes, the public names, an inert import."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import valuembed

SOURCE = Path(valuembed.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

LEVELS = {
    0: "recipes templates layers pooling errors extras inputs cleaning rows row_files tables column_types compressed "
    "file_hints sources "
    "precision heap cpu_features devices locks new_file task_rows task_files pairs backbones printable plane quantized "
    "loading_line torch_settings process_state streams text_warnings",
    1: "anatomy survey plan saved_record recipe_choice decoder_facts dtypes "
    "checkpoint checkpoint_files saved_settings adapter_base calibration_record chat decoder_config weight_files "
    "adapters adapter_embeddings lanes packing lane_choice trial compiling reader prefix passes token_reader "
    "weight_reader decoder kernels model_kwargs vocabulary "
    "quantizing prequantized resolution batching arrivals tokenizing offsets testing tiny_configs "
    "tiny_tokenizers",
    2: "value_reader module feeding calibration",
    3: "model model_info encoding reader_loading text_encoder encoder "
    "panel fingerprint cards plots method_specs layerwise segments linear_probe "
    "local_tasks mteb_encoder results selection outputs keeping trainable training_settings glyphs token_weights "
    "chart_texts storage kept_columns calls chunks vector_writer manifest shards progress sharing accounts cluster "
    "embedding_files recorded hits vector_store index_rows index_parts index_update "
    "embedding_jobs batcher engine admission gate openai_api server_metrics serving routes_openai routes_health "
    "playground other_methods routes_page request_body http_errors addresses routes_docs",
    4: "corpus one_file corpus_ray index search evaluate sweep select evidence probe next_token calibrate "
    "calibration_report cost reproduce reproduction workload finetune training_loop server",
    5: "commands completion cli_options cli_output cli cli_embed cli_explain cli_evaluate cli_layers "
    "cli_probe cli_calibrate cli_reproduce cli_embed_summary cli_search cli_train cli_serve cli_texts __main__",
}
LEVEL = {name: level for level, names in LEVELS.items() for name in names.split()}

# The verbs know nothing of each other, but for these.
SIDEWAYS = {
    ("corpus", "one_file"),
    ("search", "index"),
    ("corpus_ray", "corpus"),
    ("sweep", "evaluate"),
    ("select", "evidence"),
    ("next_token", "probe"),
    ("calibration_report", "calibrate"),
    ("reproduce", "evaluate"),
    ("reproduce", "reproduction"),
    ("reproduce", "workload"),
    ("finetune", "training_loop"),
}


def imports(path: Path) -> set[tuple[str, bool]]:
    """Modules of this package that a file imports anywhere, and whether only the type checker sees it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unseen = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test).endswith("TYPE_CHECKING")
        for statement in block.body
        for node in ast.walk(statement)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}, line {node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            package, *rest = name.split(".")
            if package == "valuembed" and rest != ["__version__"]:
                found.add((rest[0] if rest else "__init__", id(node) in unseen))
    return found


MODULES = {path.stem: imports(path) for path in FILES if path.name != "__init__.py"}


def test_every_file_has_a_level_and_stands_in_the_one_folder():
    assert len(MODULES) > 20
    assert {path.parent for path in FILES} == {SOURCE}
    assert set(MODULES) <= set(LEVEL), "give each new file a level"


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    for imported, _ in MODULES[name]:
        assert imported in MODULES, f"{name} imports {imported}, which is no file of the package"
        assert LEVEL[imported] <= LEVEL[name], f"{name} imports {imported} from above"
        if LEVEL[imported] == LEVEL[name] == 4:
            assert (name, imported) in SIDEWAYS, f"{name} imports {imported} sideways"


def test_no_imports_in_a_circle():
    graph = {name: {imported for imported, typing in found if not typing} for name, found in MODULES.items()}
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("errors") < order.index("model") < order.index("cli")


def test_the_walk_sees_every_kind_of_import(tmp_path):
    file = tmp_path / "file.py"
    file.write_text(
        "import valuembed.cli\n"
        "from valuembed import __version__, cards\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from valuembed.model import load\n"
        "def late():\n    from valuembed.search import search\n    import numpy\n"
    )
    assert imports(file) == {("cli", False), ("cards", False), ("model", True), ("search", False)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_is_above_400_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_the_plan_of_the_house_names_every_file():
    plan = SOURCE.parents[1] / "ARCHITECTURE.md"
    if not plan.exists():
        pytest.skip("the package is installed without the repository around it")
    text = plan.read_text(encoding="utf-8")
    assert [name for name in MODULES if f"`{name}.py`" not in text] == []


class TestPublicNames:
    def test_are_a_dozen_at_most_and_sorted(self):
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
            "info",
            "load",
            "train",
        ]
        assert valuembed.__all__ == names
        assert names == sorted(names, key=lambda name: (not name.isupper(), name.islower(), name))
        assert len(names) <= 12

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


@pytest.mark.parametrize(
    "statement",
    [
        "import valuembed",
        # The command line prints its help from these tables.
        "import valuembed; valuembed.METHODS, valuembed.TEMPLATES, valuembed.Recipe, valuembed.ValuembedError",
        "import valuembed.cli",
    ],
)
def test_importing_is_inert(statement):
    heavy = ("torch", "transformers", "sentence_transformers", "tokenizers", "numpy")
    check = f"import sys; {statement}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
