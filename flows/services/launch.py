"""`python -m flows.services.launch NAME HOME`: becomes the server; secrets in its environment only."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from flows.services.programs import PROGRAMS, bare_environment
from flows.services.setup import load


def main() -> None:
    """Replace this process by the server."""
    name, home = sys.argv[1], Path(sys.argv[2])
    program = next(item for item in PROGRAMS if item.name == name)
    setup = load(home)
    if setup is None:
        sys.exit(f"{home}: no services were set up here")
    words = program.command(setup)
    os.execve(words[0], words, bare_environment() | program.environment(setup))


if __name__ == "__main__":
    main()
