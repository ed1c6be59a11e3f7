"""Where the files of a model come from, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypedDict

from valuembed._utils.options import Options, option


class HubKwargs(TypedDict, total=False):
    """Type the fields of :class:`HubOptions` as keyword arguments."""

    revision: str | None
    token: bool | str | None
    cache_folder: str | None
    local_files_only: bool
    trust_remote_code: bool


@dataclass(frozen=True, kw_only=True)
class HubOptions(Options):
    """Say where the files of a model come from, as on the hub.

    Attributes:
        revision: a branch, a tag or a commit of a repository; None is its main branch.
        token: of a user, for repositories that are not public; True is the one that is kept on this machine.
        cache_folder: where files from the hub are kept; None is the hub's own cache.
        local_files_only: fetch nothing.
        trust_remote_code: run code that comes with the checkpoint.
    """

    revision: str | None = option(None, "Which version of a model on the hub is taken: a branch, a tag or a commit.")
    token: bool | str | None = field(default=None, repr=False)
    cache_folder: str | None = None
    local_files_only: bool = False
    trust_remote_code: bool = option(
        False, "Run the Python code that comes with the checkpoint, which can do anything on this machine."
    )
