"""`python -m vdmini_core`: the commands that need no orchestrator."""

from vdmini_core.cli import main

if __name__ == "__main__":
    main()
