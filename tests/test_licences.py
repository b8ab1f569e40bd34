"""What the base install pulls in is free for any use: no non-commercial licence, no copyleft, none unknown.

Read from the metadata of what is installed here, from voxzoo's own requirements on, without extras.
"""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
FREE = re.compile(
    r"apache|\bmit\b|\b0?bsd\b|\bpsf|python software foundation|\bisc\b|zlib|cc0|cnri-python|unlicense", re.I
)
REFUSED = re.compile(
    r"gpl|general public|\bmpl|mozilla|copyleft|\bepl|eclipse public|\bcc[- ]by|creative commons|non-?commercial|\bnc\b"
    r"|proprietary|research only|\bsspl|\bbusl",
    re.I,
)
NVIDIA = "CUDA's libraries, which torch links on Linux: free to use and to pass on, not open"
EXCEPTIONS = {
    "tqdm": "MPL-2.0 holds for tqdm's own files alone; nothing here changes them (by lightning)",
    "cuda-toolkit": NVIDIA,
}
# Not in metadata, which speaks of a package's own code: wheels of soundfile carry libsndfile (LGPL-2.1) as a shared
# library, loaded at run time and open to be replaced; those of numpy and torch carry GCC's run-time libraries (GPL-3
# with the exception that lets anything link them).


def base_install(start: dict[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """Package -> extras asked of it, for all that these pull in on this machine."""
    found: dict[str, frozenset[str]] = {}
    waiting = list(start.items())
    while waiting:
        name, extras = waiting.pop()
        if name in found and extras <= found[name]:
            continue
        found[name] = found.get(name, frozenset()) | extras
        for requirement in map(Requirement, distribution(name).requires or ()):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *found[name])):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found


def licence(name: str) -> str:
    """What the metadata says: the SPDX expression; else the first line of the licence and the classifiers."""
    metadata = distribution(name).metadata
    if expression := metadata.get("License-Expression"):
        return expression
    lines = (metadata.get("License") or "").strip().splitlines()[:1]
    classifiers = [line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier") or () if "License" in line]
    return "; ".join([*lines, *classifiers])


def verdict(name: str, text: str) -> str | None:
    """Why a package is refused; None where it is not."""
    if name in EXCEPTIONS or (name.startswith("nvidia-") and re.search("nvidia|proprietary", text, re.I)):
        return None
    if REFUSED.search(text):
        return f"{name}: {text}"
    return None if FREE.search(text) else f"{name}: unknown licence {text!r}"


@pytest.fixture(scope="module")
def packages() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [Requirement(line) for line in project["dependencies"]]
    return set(base_install({canonicalize_name(each.name): frozenset(each.extras) for each in asked}))


def test_the_base_install_is_free_for_any_use(packages: set[str]):
    assert {"torch", "lightning", "numpy", "jinja2"} <= packages  # what is asked for, and what that asks for
    assert [fault for name in sorted(packages) if (fault := verdict(name, licence(name)))] == []


def test_exceptions_are_needed(packages: set[str]):
    """An exception for what is no longer there goes."""
    assert "tqdm" in packages
    assert REFUSED.search(licence("tqdm"))


@pytest.mark.parametrize("name", ["encodec", "num2words", "espeakng-loader", "speechmos", "onnxruntime"])
def test_packages_with_conditions_are_extras(name: str, packages: set[str]):
    assert name not in packages
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(Requirement(line).name == name for lines in extras.values() for line in lines)


@pytest.mark.parametrize(
    "text",
    [
        "CC BY-NC 4.0", "CC-BY-NC-4.0", "Creative Commons Attribution-NonCommercial 4.0 International",
        "GPL-3.0-or-later", "GNU Affero General Public License v3", "LGPL", "MPL-2.0 AND MIT",
        "Apache-2.0 AND LicenseRef-Proprietary", "LicenseRef-NVIDIA-Proprietary", "", "see the file",
    ],
)  # fmt: skip
def test_licences_that_are_refused(text: str):
    assert verdict("some", text)


@pytest.mark.parametrize("text", ["MIT-CMU", "3-Clause BSD License", "Apache-2.0 OR BSD-2-Clause", "PSF-2.0", "MIT-0"])
def test_licences_that_are_free(text: str):
    assert verdict("some", text) is None
