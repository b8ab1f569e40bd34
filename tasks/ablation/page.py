"""A page of results: one HTML file that needs nothing else, of `page.html`, `page.css` and `page_*.js` beside this.

Nothing of a manifest or of a system's output is ever HTML: the template escapes what it writes; the rest is JSON in a
block that no browser runs, and the script makes nodes of text of it. The policy in the page's head lets only this
script and this style in, no address, and no text that would become HTML.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...components.lines import json_line
from ...components.whole import write_whole

PAGE = "page.html"
_FOLDER = Path(__file__).parent
_SCRIPTS = ("page_base.js", "page_plots.js", "page_examples.js", "page_blind.js")
_UNSAFE = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&"}


def write_page(path: Path, content: Mapping[str, Any]) -> int:
    """Write the page; returns how many bytes it has.

    Args:
        path: of the file, which appears whole.
        content: of `content.content_of`.
    """
    page = render(content).encode(errors="backslashreplace")
    write_whole(path, page)
    return len(page)


def render(content: Mapping[str, Any]) -> str:
    """The page as text; the same content gives the same text."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    scripts = "\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    script, style = f'"use strict";\n(() => {{\n{scripts}}})();\n', (_FOLDER / "page.css").read_text(encoding="utf-8")
    return environment.get_template(PAGE).render(
        {key: value for key, value in content.items() if key != "data"},
        data=json_line(content["data"]).translate(_UNSAFE),
        script=script,
        style=style,
        script_sum=_sum(script),
        style_sum=_sum(style),
    )


def _sum(text: str) -> str:
    """As a content security policy names a block."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
