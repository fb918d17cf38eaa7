"""Adds configs/ to the wheel as the package jaxrlvr.configs; pyproject.toml says everything else.

`packages.find` names a package after its folder, so it can't find one whose folder lies elsewhere.
"""

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
  """Builds the packages that were found, and jaxrlvr.configs."""

  def finalize_options(self) -> None:
    super().finalize_options()
    self.packages = [*self.packages, "jaxrlvr.configs"]


setup(cmdclass={"build_py": BuildWithConfigs})
