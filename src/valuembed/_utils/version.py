"""The version of this library and of what it stands on, for whatever records what made it."""

__version__ = "0.1.0"


def versions(*packages: str) -> dict[str, str]:
    """Look up versions: of this library, and of installed packages by their names on PyPI."""
    # Slow to import, and not needed to import this package.
    from importlib.metadata import version

    return {"valuembed": __version__, **{package: version(package) for package in packages}}
