"""Entry point of the ``valuembed`` command and of ``python -m valuembed``."""

from __future__ import annotations

import os


def main() -> None:
    """Run the command line."""
    # Read once, when torch is imported: idle OpenMP threads that spin slow everything down beside another busy process.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from valuembed.cli import app

    app(prog_name="valuembed")


if __name__ == "__main__":
    main()
