"""Models that come inside pip packages: each file is compared with a pinned SHA-256, and the bytes that were checked
are the bytes that are used. Nothing is fetched."""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from ...components.errors import UserError


@dataclass(frozen=True)
class PackagedFile:
    """One file of a model.

    Attributes:
        pieces: what it is joined from, as (distribution, path inside it).
        sha256: of the whole.
    """

    pieces: tuple[tuple[str, str], ...]
    sha256: str

    def read(self, what: str, install: str) -> bytes:
        """The bytes.

        Args:
            what: the name of the file in a message, such as "model.bin of recogniser base".
            install: the command that gets the packages.

        Raises:
            UserError: a package is not installed, or the file is absent or not the one that was pinned.
        """
        parts: list[bytes] = []
        for package, path in self.pieces:
            try:
                parts.append(metadata.distribution(package).locate_file(path).read_bytes())  # pyright: ignore
            except metadata.PackageNotFoundError:
                raise UserError(f"{what} needs the package {package}, which is not installed: {install}") from None
            except FileNotFoundError:
                found = metadata.version(package)
                raise UserError(
                    f"{what}: {package} {found} has no file {path}; install the pinned version: {install}"
                ) from None
        content = b"".join(parts)
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256:
            raise UserError(
                f"{what} has SHA-256 {found[:12]}..., expected {self.sha256[:12]}...: the package changed or is "
                f"damaged; reinstall it: {install}"
            )
        return content

    @property
    def source(self) -> str:
        """The packages and their versions, for a signature."""
        names = sorted({name for name, _ in self.pieces})
        return "+".join(f"{name}-{metadata.version(name)}" for name in names)


def need(module: str, what: str, install: str) -> Any:
    """Import an optional package. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{what} needs the package {module}, which is not installed: {install}") from error
