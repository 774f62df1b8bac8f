"""What pyproject.toml cannot say: configs/ is the package robustmed.configs in a wheel."""

import setuptools

setuptools.setup(
  packages=[*setuptools.find_namespace_packages(include=['robustmed*']), 'robustmed.configs'],
  package_dir={'robustmed.configs': 'configs'},
)
