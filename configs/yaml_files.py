"""YAML files, and what is wrong with one, in one line with the file and the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from ..components.errors import UserError


def load_yaml(path: str | Path) -> Any:
    """The DictConfig or ListConfig of a file.

    Raises:
        UserError: it is missing, cannot be read, is no YAML, or holds no map or list.
    """
    try:
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
