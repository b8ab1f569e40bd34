"""YAML files, and what is wrong with one, in one line with the file and the line."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from ..components.errors import UserError

_LARGEST = 1 << 22
"""Bytes of a config."""
_MOST_NODES = 100_000


def load_yaml(path: str | Path) -> Any:
    """The DictConfig or ListConfig of a file.

    Raises:
        UserError: it is missing, cannot be read, is no YAML, or holds no map or list.
    """
    try:
        require_bounded(path)
        found = OmegaConf.load(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deep for a config") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}" if mark is not None else ""
        raise UserError(f"{path}{place}: no YAML: {_said(error)}") from None
    except (YAMLError, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{path}: no YAML of a config: {' '.join(str(error).split())}") from None
    except OSError as error:
        reason = error.strerror or "it holds a plain value"  # OmegaConf's word for it
        raise UserError(f"{path}: {reason}; expected a file with a map of settings") from None
    return found


def require_bounded(path: str | Path) -> None:
    """Refuse a file that takes much more than a config does, before it is read as one: aliases of aliases (`&a`, `*a`)
    make a billion nodes of a few lines.

    Raises:
        UserError: no regular file, too large, or aliases that multiply.
        OSError: it cannot be opened.
    """
    about = Path(path).stat()
    if not stat.S_ISREG(about.st_mode) and not stat.S_ISDIR(about.st_mode):
        raise UserError(f"{path}: no regular file; expected a config")
    if about.st_size > _LARGEST:
        raise UserError(f"{path}: {about.st_size:,} bytes; a config has up to {_LARGEST:,}")
    content = Path(path).read_bytes()
    if b"*" not in content or b"&" not in content:
        return
    try:
        root = yaml.compose(content, Loader=yaml.SafeLoader)
        sizes: dict[int, int] = {}
        if root is not None and _expanded(root, sizes) > _MOST_NODES:
            raise UserError(f"{path}: its aliases stand for more than {_MOST_NODES:,} values; write them out")
    except (YAMLError, UnicodeDecodeError, RecursionError):
        return  # told with its line by who reads it


def _expanded(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Values that a node stands for, each alias counted as what it repeats."""
    if id(node) not in sizes:
        sizes[id(node)] = 1  # of one within itself
        inner = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            inner = [one for pair in node.value for one in pair]
        sizes[id(node)] = 1 + sum(_expanded(one, sizes) for one in inner)
    return sizes[id(node)]


def load_map(path: str | Path, advice: str = "") -> Any:
    """The DictConfig of a file. Raises UserError as `load_yaml`, and where it holds something else.

    Args:
        path: the file.
        advice: what to do, for the end of the message.
    """
    try:
        found = load_yaml(path)
    except UserError as error:
        raise UserError(f"{error}{advice}") from None
    if not OmegaConf.is_dict(found) or not found:
        kind = "is empty" if not found else "holds a list"
        raise UserError(f"{path}: {kind}; expected a map of settings{advice}")
    return found


def _said(error: MarkedYAMLError) -> str:
    words = [str(word) for word in (error.context, error.problem) if word]
    said = " ".join("; ".join(words).split())
    return f"{said} (indent with blanks)" if "'\\t'" in said else said
