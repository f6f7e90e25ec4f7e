"""Entry point of ``python -m m2pt_cli`` and of the ``m2pt`` script."""

from __future__ import annotations

import sys


def run() -> None:
    """Run the command line and exit with its exit code."""
    from m2pt_cli.cli.app import main

    sys.exit(main())


if __name__ == "__main__":
    run()
