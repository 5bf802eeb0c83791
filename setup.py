"""The one thing pyproject.toml cannot say: `configs/` at the top is also the package `hidecmoe_jax.configs`.

There is a single copy of every config. Everything else is in pyproject.toml.
"""

from setuptools import find_namespace_packages, setup

PACKAGE = "hidecmoe_jax"
CONFIGS = f"{PACKAGE}.configs"
# Files of the package beside its modules; tests/packaging fails where one is left out.
ENDINGS = ("css", "gz", "html", "j2", "jpg", "js", "json", "md", "safetensors", "txt", "typed", "yaml")

packages = find_namespace_packages(include=[f"{PACKAGE}*"], exclude=["*__pycache__*"])
configs = [CONFIGS, *(f"{CONFIGS}.{name}" for name in find_namespace_packages("configs"))]

setup(
    packages=packages + configs,
    package_dir={CONFIGS: "configs"},
    package_data={"": [f"*.{ending}" for ending in ENDINGS]},
    include_package_data=False,
)
