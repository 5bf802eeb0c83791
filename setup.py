"""The one thing pyproject.toml cannot say: `configs/` at the top is also the package `hidecmoe_jax.configs`.

There is a single copy of every config. Everything else is in pyproject.toml.
"""

from setuptools import find_namespace_packages, setup

packages = find_namespace_packages(include=["hidecmoe_jax*"], exclude=["*__pycache__*"])
configs = [
    "hidecmoe_jax.configs",
    *(f"hidecmoe_jax.configs.{name}" for name in find_namespace_packages("configs")),
]

setup(
    packages=packages + configs,
    package_dir={"hidecmoe_jax.configs": "configs"},
    package_data={"": ["*.yaml", "*.json", "*.safetensors", "*.html", "*.j2", "*.txt", "*.md", "*.gz", "*.jpg"]},
    include_package_data=False,
)
