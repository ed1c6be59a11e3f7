"""What loading really touches: the tensors read from disk, the files opened, the requests sent to a hub; and hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors
import transformers.modeling_utils
from huggingface_hub import constants
from huggingface_hub.utils import httpx
from huggingface_hub.utils._http import default_client_factory

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class DiskReads:
    """What was read through safetensors.

    Opening a file reads its list of names; a tensor's data is read when its slice is indexed, or on `get_tensor`.

    Attributes:
        opened: names of the files opened.
        tensors: names of the tensors whose data was read, once for each time.
    """

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.tensors: list[str] = []


def watch_reads(monkeypatch: pytest.MonkeyPatch) -> DiskReads:
    """Record every read from here on, by transformers and by anyone who imports `safe_open` later."""
    reads = DiskReads()
    real_open = safetensors.safe_open

    class Slice:
        def __init__(self, name: str, real: Any) -> None:
            self._name, self._real = name, real

        def __getitem__(self, index: Any) -> Any:
            reads.tensors.append(self._name)
            return self._real[index]

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

    class File:
        def __init__(self, path: Any, *args: Any, **kwargs: Any) -> None:
            reads.opened.append(Path(path).name)
            self._real = real_open(path, *args, **kwargs)

        def get_slice(self, name: str) -> Slice:
            return Slice(name, self._real.get_slice(name))

        def get_tensor(self, name: str) -> Any:
            reads.tensors.append(name)
            return self._real.get_tensor(name)

        def __enter__(self) -> File:
            self._real.__enter__()
            return self

        def __exit__(self, *args: Any) -> None:
            self._real.__exit__(*args)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

    monkeypatch.setattr(safetensors, "safe_open", File)
    monkeypatch.setattr(transformers.modeling_utils, "safe_open", File)
    return reads


class FakeHub:
    """A hub that holds one repository, and notes every file it is asked for.

    It stands in for the network itself, below every library that may send a request.

    Args:
        repo: id of the repository.
        folder: its files.
    """

    def __init__(self, repo: str, folder: Path) -> None:
        self.repo, self.folder = repo, folder
        self.asked: set[str] = set()
        self.sent: set[str] = set()
        self.repos: set[str] = set()

    def __call__(self, request: Any) -> Any:
        path = request.url.path
        if path.startswith("/api/models/"):
            return self._about(path.removeprefix("/api/models/"))
        repo, resolve, rest = path.lstrip("/").partition("/resolve/")
        if not resolve:
            return httpx.Response(404)
        self.repos.add(repo)
        name = rest.partition("/")[2]
        self.asked.add(name)
        if repo != self.repo:
            return httpx.Response(404, headers={"x-error-code": "RepoNotFound"})
        headers = {"x-repo-commit": COMMIT, "etag": f'"{name}"'}
        file = self.folder / name
        if not file.is_file():
            return httpx.Response(404, headers={**headers, "x-error-code": "EntryNotFound"})
        headers["content-length"] = str(file.stat().st_size)
        if request.method == "HEAD":
            return httpx.Response(200, headers=headers)
        self.sent.add(name)
        return httpx.Response(200, headers=headers, content=file.read_bytes())

    def _about(self, rest: str) -> Any:
        if rest != self.repo and not rest.startswith(f"{self.repo}/"):
            return httpx.Response(404, headers={"x-error-code": "RepoNotFound"})
        if "/tree/" in rest:
            files = [file.name for file in sorted(self.folder.iterdir())] if rest.count("/") == 3 else []
            return httpx.Response(200, json=[{"type": "file", "path": name, "size": 1, "oid": name} for name in files])
        return httpx.Response(200, json={"id": self.repo, "sha": COMMIT, "siblings": []})


@contextmanager
def fake_hub(repo: str, folder: Path) -> Iterator[FakeHub]:
    """Lift offline mode, and answer every request that `huggingface_hub` would send from a folder."""
    hub = FakeHub(repo, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        huggingface_hub.set_client_factory(
            lambda: httpx.Client(transport=httpx.MockTransport(hub), follow_redirects=True)
        )
        try:
            yield hub
        finally:
            huggingface_hub.set_client_factory(default_client_factory)


def hooks_of(model: Any) -> dict[str, int]:
    """How many hooks hang on each module."""
    return {name: len(module._forward_hooks) for name, module in model.named_modules()}
