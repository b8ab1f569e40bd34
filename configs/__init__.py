"""YAML files, one folder per role, and what turns them into objects: compose, check, build."""

from .build import build
from .check import Fault, check, require_valid
from .compose import compose, to_yaml

__all__ = ["Fault", "build", "check", "compose", "require_valid", "to_yaml"]
