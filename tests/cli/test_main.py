import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fakes import FakeEncoder
from light_commands import answers
from running import run, succeeds

from valuembed.cli import embed as cli_embed, main as cli, output as cli_output, search as cli_search
from valuembed.recipes.methods import METHODS
from valuembed.recipes.templates import TEMPLATES

pytestmark = pytest.mark.slow

HEAVY = ("torch", "transformers", "sentence_transformers", "pyarrow", "numpy")
SENTENCES = Path(__file__).parents[2] / "examples" / "sentences.txt"
COMMANDS = ("embed", "similarity", "search", "explain", "info")


@pytest.fixture
def loaded(monkeypatch):
    """Commands get a fake model; the list holds the options it was asked for with."""
    asked = []

    def load(options):
        asked.append(options)
        return FakeEncoder(name=options["model"])

    for module in (cli, cli_embed, cli_search):
        monkeypatch.setattr(module, "load_encoder", load)
    return asked


def fails(*arguments, code=1):
    """The command's error, which is one line on stderr and all that is printed."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    return result.stderr


def shell(*arguments, **env):
    source = str(Path(cli.__file__).parents[2])
    path = os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **env},
    )


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("abc abc\nxyz\n\nabc\n")
    return path


@pytest.mark.process
def test_help_imports_nothing_heavy():
    commands = [["--help"], ["--version"], [], *([command, "--help"] for command in (*COMMANDS, "index"))]
    for command, answer in zip(commands, answers("valuembed.cli.main", commands, HEAVY), strict=True):
        assert answer.output
        assert (command, answer.slow) == (command, [])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_same_model_options_with_the_legal_names(command):
    shown = succeeds(command, "--help")
    names = ("model", "method", "layers", "template", "dtype", "device", "max-tokens", "revision", "trust-remote-code")
    for option in names:
        assert f"--{option} " in shown
    words = shown.replace("│", " ").replace(",", " ").split()
    assert set(METHODS) | set(TEMPLATES) <= set(words)


@pytest.mark.process
def test_the_program_has_every_command():
    # In a process of its own: here other tests register commands.
    script = "import valuembed.cli.main as cli, typer; print(*sorted(typer.main.get_command(cli.app).commands))"
    measuring = ("evaluate", "sweep", "select-layers", "calibrate", "probe", "reproduce", "cost")
    assert shell("-c", script).stdout.split() == sorted([*COMMANDS, *measuring, "index", "train", "serve", "mcp"])


def test_version():
    try:
        expected = version("valuembed")
    except PackageNotFoundError:
        expected = "unknown"
    assert succeeds("--version") == f"valuembed {expected}\n"


def test_options_that_are_given_reach_load_and_no_others(loaded, texts, tmp_path):
    succeeds("embed", texts, "-o", tmp_path / "a.parquet")
    defaults = {"trust_remote_code": False, "compile": False}
    assert loaded.pop() == {"model": "bundled", **defaults}
    given = {
        "model": "some/model",
        "method": "va",
        "layers": "0.5:0.9",
        "template": "x {text}",
        "dtype": "float32",
        "device": "cpu",
        "max_tokens": 64,
        "revision": "main",
    }
    options = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    succeeds("embed", texts, "-o", tmp_path / "b.parquet", *options, "--trust-remote-code")
    assert loaded.pop() == {**given, "trust_remote_code": True, "compile": False}
    succeeds("embed", texts, "-o", tmp_path / "c.parquet", "--compile")
    assert loaded.pop()["compile"] is True


def test_embed(loaded, texts, tmp_path):
    output = tmp_path / "out.parquet"
    shown = succeeds("embed", texts, "-o", output)
    assert f"{output}: 3 of 4 rows embedded, 16 wide, in " in shown
    assert "(4 tokens, " in shown
    assert f"{output}.rejected.jsonl: 1 row was set aside, each with its reason; the first, row " in shown
    assert pq.read_table(output)["text"].to_pylist() == ["abc abc", "xyz", "abc"]


def test_embed_takes_columns_and_overwrites(loaded, tmp_path):
    source, output = tmp_path / "in.csv", tmp_path / "out.parquet"
    source.write_text("key,body\none,a text\n")
    columns = ["--text-column", "body", "--id-column", "key"]
    succeeds("embed", source, "--output", output, *columns)
    assert "exists; give another name, or --overwrite" in fails("embed", source, "-o", output, *columns)
    succeeds("embed", source, "-o", output, *columns, "--overwrite")
    assert pq.read_table(output)["id"].to_pylist() == ["one"]


def test_embed_says_that_an_input_holds_no_rows_before_a_model_is_loaded(loaded, tmp_path):
    (tmp_path / "in.txt").touch()
    message = fails("embed", tmp_path / "in.txt", "-o", tmp_path / "out.parquet")
    assert message.endswith("in.txt holds no rows: there is nothing in it\n")
    assert loaded == []
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.filterwarnings("default::valuembed.errors.TruncationWarning")
def test_embed_warns_in_one_line(loaded, tmp_path):
    (tmp_path / "in.txt").write_text("long " * 100)
    result = run("embed", tmp_path / "in.txt", "-o", tmp_path / "out.parquet")
    assert result.exit_code == 0
    assert result.stderr == "warning: 1 of 1 text was too long and lost its end\n"


def test_files_are_checked_before_a_model_is_loaded(loaded, texts, tmp_path):
    out = tmp_path / "out.parquet"
    missing = tmp_path / "no.txt"
    assert fails("embed", missing, "-o", out) == f"error: input {missing} does not exist\n"
    assert fails("embed", texts, "-o", tmp_path / "no" / "out.parquet").endswith("does not exist; create it first\n")
    assert fails("embed", texts, "-o", "out.csv").startswith("error: output out.csv has the extension '.csv'; ")
    (tmp_path / "in.csv").write_text("body\nx\n")
    assert "no column 'text'; its columns are 'body'" in fails("embed", tmp_path / "in.csv", "-o", out)
    assert "does not exist; give a file of embeddings" in fails("search", "query", "--in", out)
    assert loaded == []


def test_the_model_is_the_first_thing_after_the_files(loaded, texts, tmp_path):
    succeeds("embed", texts, "-o", tmp_path / "out.parquet")
    message = fails("search", "abc", "--in", tmp_path / "out.parquet", "-k", "0", code=2)
    assert "Invalid value for '-k'" in message


def test_search(loaded, texts, tmp_path):
    succeeds("embed", texts, "-o", tmp_path / "out.parquet")
    lines = succeeds("search", "cba", "--in", tmp_path / "out.parquet", "-k", 2).splitlines()
    # Letters of the query: (1, 1, 1). "abc abc": (2, 2, 2) and one blank, so the cosine is 6 / sqrt(3 * 13) = 0.961.
    assert [line.rstrip() for line in lines] == [" 1  1.000  id 3", "    abc", " 2  0.961  id 0", "    abc abc"]
    hits = json.loads(succeeds("search", "cba", "--in", tmp_path / "out.parquet", "--json"))
    assert [hit["id"] for hit in hits] == [3, 0, 1]
    assert hits[0].keys() == {"rank", "score", "id", "text", "words"}


def test_search_refuses_a_file_of_another_model(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(cli_embed, "load_encoder", lambda options: FakeEncoder("one"))
    succeeds("embed", texts, "-o", tmp_path / "out.parquet")
    monkeypatch.setattr(cli_search, "load_encoder", lambda options: FakeEncoder("two", layers=(1,)))
    message = fails("search", "abc", "--in", tmp_path / "out.parquet")
    assert "out.parquet was made by model 'one', method 'aligned_wva'" in message
    assert "the query would be made by model 'two'" in message
    assert message.count("\n") == 1


def test_similarity(loaded):
    shown = succeeds("similarity", "aa", "bbb", "ab")
    assert shown.splitlines()[1].split() == ["1", "aa", "1.000", "0.000", "0.707"]
    found = json.loads(succeeds("similarity", "aa", "bb", "--json"))
    assert found == {"texts": ["aa", "bb"], "similarity": [[1.0, 0.0], [0.0, 1.0]]}


def test_similarity_as_a_picture(loaded, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "matrix.png"
    shown = succeeds("similarity", "aa", "bbb", "ab", "--plot", picture)
    assert shown == succeeds("similarity", "aa", "bbb", "ab") + f"{picture}: written\n"
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.unlink()
    assert json.loads(succeeds("similarity", "aa", "bb", "--plot", picture, "--json"))["texts"] == ["aa", "bb"]
    assert picture.exists()


def test_a_picture_that_cannot_be_written_is_known_before_a_model_is_loaded(loaded):
    assert fails("similarity", "aa", "bb", "--plot", "matrix.jpg") == (
        "error: picture matrix.jpg has the extension '.jpg'; name a file that ends in .png\n"
    )
    assert loaded == []


def test_texts_are_not_markup(loaded):
    assert "[red]b[/red]" in succeeds("similarity", "a", "[red]b[/red]")


def test_what_could_steer_a_terminal_is_not_printed(loaded):
    assert "\x1b" not in succeeds("similarity", "a\x1b[31mred\nline", "b")


def test_similarity_wants_two_texts(loaded):
    assert "give two texts or more" in fails("similarity", "alone", code=2)
    assert loaded == []


@pytest.mark.parametrize(
    "arguments",
    [["nothing"], ["embed"], ["search"], ["info", "a", "--model", "b"], ["--no"]],
)
def test_wrong_usage_exits_with_2(arguments):
    assert fails(*arguments, code=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--for", "fun"], "error: purpose 'fun' is unknown; give one of similarity, search, clustering"),
        (
            ["--for", "search", "--method", "va"],
            "error: --for search stands for a method, and --method va is one; give one",
        ),
        (["--method", "vb"], "error: method 'vb' is unknown; give one of va, aligned_va, wva, aligned_wva, "),
        (["--template", "eol"], "error: template 'eol' is unknown; give one of none, prompt_eol, "),
        (["--template", "{text} {text}"], "error: template '{text} {text}' holds 2 {text}; it needs exactly one"),
        (["--layers", "90"], "error: layers='90': layer 90 cannot be read in this model of "),
        (["--dtype", "int3"], "error: dtype='int3' is unknown; legal: "),
        (["--model", "./nowhere"], "error: no folder './nowhere'; give a folder that exists, a hub id such as "),
    ],
)
def test_wrong_choices_are_one_line(options, message):
    for command in (["info"], ["similarity", "a", "b"]):
        last = fails(*command, *options).splitlines()[-1]
        assert last.startswith(message)


def test_what_a_purpose_stands_for_is_told(folder):
    done = run("similarity", "one two", "x", "--model", folder, "--for", "clustering", "--json")
    told = "for clustering: Mean of the values of the text's tokens, through the output projection; layers default\n"
    assert done.stderr.startswith(told)
    expected = json.loads(succeeds("similarity", "one two", "x", "--model", folder, "--method", "aligned_va", "--json"))
    assert json.loads(done.stdout) == expected


def test_an_interrupt_is_one_line(monkeypatch):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load_encoder", interrupt)
    assert fails("similarity", "a", "b", code=130) == "interrupted; nothing was written\n"


def test_a_mistake_of_ours_is_not_hidden(monkeypatch):
    monkeypatch.setattr(cli, "load_encoder", lambda options: 1 / 0)
    assert isinstance(run("similarity", "a", "b").exception, ZeroDivisionError)


@pytest.mark.process
def test_the_program_prints_errors_on_stderr_without_a_traceback(tmp_path):
    done = shell("-m", "valuembed", "embed", tmp_path / "no.txt", "-o", tmp_path / "out.parquet")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: input {tmp_path / 'no.txt'} does not exist\n"


@pytest.mark.process
def test_the_program_makes_idle_threads_sleep(tmp_path):
    script = (
        "import os, valuembed.cli.main, valuembed.__main__ as program\n"
        "valuembed.cli.main.app = lambda **_: print(os.environ['OMP_WAIT_POLICY'])\n"
        "program.main()"
    )
    assert shell("-c", script, OMP_WAIT_POLICY="ACTIVE").stdout == "ACTIVE\n"
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    path = str(Path(cli.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**env, "PYTHONPATH": path}
    )
    assert done.stdout == "PASSIVE\n", done.stderr


def test_info_shows_what_is_read():
    result = run("info", "bundled", "--method", "va", "--layers", "half")
    assert result.exit_code == 0
    assert result.stderr == cli_output.DEMONSTRATION_NOTE + "\n"
    shown = dict(line.split("  ", 1) for line in result.stdout.splitlines() if "  " in line)
    assert shown["model"].strip() == "bundled"
    assert shown["method"].strip() == "va"
    assert shown["template"].strip() == "{text}"
    found = json.loads(succeeds("info", "--model", "bundled", "--method", "va", "--layers", "half", "--json"))
    assert found["recipe"]["method"] == "va"
    assert found["chosen_layers"] == list(range(found["num_layers"] // 2, found["num_layers"]))
    assert found["width"] == found["value_heads"] * found["head_width"]


@pytest.mark.slow
def test_the_sample_is_embedded_and_searched_with_the_bundled_model(tmp_path):
    """What the README promises, for real: the first command of a newcomer."""
    sentences = SENTENCES.read_text().splitlines()
    assert len(set(sentences)) == len(sentences) >= 120
    output = tmp_path / "sentences.parquet"
    result = run("embed", SENTENCES, "-o", output)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("note: the bundled model is a small one") == 1
    assert f"{len(sentences)} of {len(sentences)} rows embedded" in result.stdout

    def found(query):
        return [hit["text"] for hit in json.loads(succeeds("search", query, "--in", output, "-k", 3, "--json"))]

    assert "train" in found("The train was late.")[0]
    music = ("musician", "piano", "violinist", "melody", "singer")
    assert all(any(word in text for word in music) for text in found("A musician played a song.")[:2])
    assert found(sentences[17])[0] == sentences[17]
    message = fails("search", "x", "--in", output, "--method", "va")
    assert "method 'aligned_wva'" in message
    assert "method 'va'" in message
