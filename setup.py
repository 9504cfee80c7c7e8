"""Build step only: the wheel carries the project files that `vdmini init` lays out."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PROJECT_FILES = ("dvc.yaml", "params.yaml", ".dvcignore", "profiles", "videos/README.md",
                 "teachers/README.md", "teachers/start/README.md", "timing/README.md",
                 "vbench/README.md")  # fmt: skip


class BuildWithProjectFiles(build_py):
    """Copies the checkout's own files, so that there is one source of them."""

    def run(self) -> None:
        """Build, then add the project files beside the stages."""
        super().run()
        here, target = Path(__file__).parent, Path(self.build_lib) / "tasks" / "project_template"
        for name in PROJECT_FILES:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            if (here / name).is_dir():
                shutil.copytree(here / name, target / name, dirs_exist_ok=True)
            else:
                shutil.copyfile(here / name, target / name)


setup(cmdclass={"build_py": BuildWithProjectFiles})
