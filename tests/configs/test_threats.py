"""Each line of the threat model names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_each_line_has_its_test():
    section = (ROOT / "configs" / "README.md").read_text(encoding="utf-8").partition("## What a file may do")[2]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    there = {
        name
        for path in ROOT.glob("tests/**/test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.M)
    }
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        assert set(named) <= there, row
