"""Run a child as someone whom file permissions bind: root reads everything, so it gives that up."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_PR_CAPBSET_DROP, _DAC_OVERRIDE, _DAC_READ_SEARCH = 24, 1, 2


def bound_by_permissions() -> None:
    """For `preexec_fn`: root gives up the capabilities that pass over permissions, for good after `exec`.

    Another user could not start an interpreter that lies in root's home; root without these capabilities is
    refused what its owner bits refuse, as anyone is.
    """
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in (_DAC_OVERRIDE, _DAC_READ_SEARCH):
            libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def why_not_bound() -> str:
    """Empty where such a child is refused a file of mode 0; else the reason to skip."""
    with tempfile.TemporaryDirectory() as folder:
        shut = Path(folder) / "shut"
        shut.write_text("x")
        shut.chmod(0)
        tried = subprocess.run(
            [sys.executable, "-c", "import sys; open(sys.argv[1])", str(shut)],
            preexec_fn=bound_by_permissions,
            capture_output=True,
            text=True,
            check=False,
        )
    if "PermissionError" in tried.stderr:
        return ""
    return "this user reads files of mode 0 whatever it gives up"
