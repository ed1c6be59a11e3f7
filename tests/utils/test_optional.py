"""An extra that is missing is told with the line that installs it, which depends on where the package came from."""

import json
from importlib import metadata
from pathlib import Path

import pytest

from valuembed._utils import optional
from valuembed._utils.optional import install_line, require
from valuembed.errors import MissingExtraError


class Installed:
    def __init__(self, **origin):
        self.origin = origin

    def read_text(self, name):
        assert name == "direct_url.json"
        return json.dumps(self.origin) if self.origin else None


@pytest.fixture
def installed(monkeypatch):
    return lambda **origin: monkeypatch.setattr(metadata, "distribution", lambda name: Installed(**origin))


def test_require_names_the_line(installed):
    installed()
    with pytest.raises(
        MissingExtraError, match=r'^nowhere is not installed; run: pip install "valuembed\[train\]"$'
    ) as caught:
        require("nowhere.inside", "train")
    assert isinstance(caught.value, ImportError)
    with pytest.raises(ModuleNotFoundError, match=r"json\.nothing") as other:
        require("json.nothing", "train")
    assert not isinstance(other.value, MissingExtraError)
    assert require("json.decoder", "train").JSONDecoder is json.JSONDecoder


def test_a_clone(installed, tmp_path, monkeypatch):
    clone = tmp_path / "a clone"
    clone.mkdir()
    installed(url=clone.as_uri(), dir_info={})
    assert install_line("eval") == f'pip install "{clone}[eval]"'
    installed(url=clone.as_uri(), dir_info={"editable": True})
    (clone / "constraints.txt").touch()
    assert install_line("eval") == f'pip install -c "{clone}/constraints.txt" -e "{clone}[eval]"'
    monkeypatch.chdir(clone)
    assert install_line("eval") == 'pip install -c constraints.txt -e ".[eval]"'


def test_a_file_an_address_and_a_repository(installed):
    for url in ("file:///tmp/valuembed-0.1.0-py3-none-any.whl", "https://example.org/valuembed-0.1.0.tar.gz"):
        installed(url=url, archive_info={})
        assert install_line("plot") == f'pip install "valuembed[plot] @ {url}"'
    installed(url="https://example.org/valuembed.git", vcs_info={"vcs": "git", "commit_id": "c0ffee"})
    assert install_line("plot") == 'pip install "valuembed[plot] @ git+https://example.org/valuembed.git@c0ffee"'


def test_a_clone_that_is_not_installed(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    monkeypatch.chdir("/")
    root = Path(optional.__file__).parents[3]
    assert install_line("store").endswith(f'-e "{root}[store]"')
