"""The blocks of the manual's pages, and a shell of tests that runs them on tiny parts and a tiny corpus.

A block says by its first line what it is: `# path/to/file.py` or `.yaml` is written there; `$ voxzoo ...` is run, and
what stands below is what it says (`...` for any lines); else each line is a command. A block behind
`<!-- not run: REASON -->` is not run. Behind `<!-- test-all: REASON -->` only `make test-all` trains what it trains,
and `make test` checks it.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in sorted([ROOT / "README.md", *ROOT.glob("[a-z]*/README.md"), *ROOT.glob("configs/*/README.md")])
}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- (not run|test-all): ([^\n]+) -->\n+\Z")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    mark: str  # "", "not run" or "test-all"
    reason: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> Iterator[Block]:
    text = PAGES[page]
    for found in _FENCE.finditer(text):
        mark = _MARK.search(text[: found.start()])
        line = text.count("\n", 0, found.start()) + 1
        yield Block(page, line, found[1], found[2], mark[1] if mark else "", mark[2] if mark else "")


# Choices of tiny parts, for each role that a command leaves as it is.
_TINY = ("frontend", "speech_encoder", "adaptor", "text_seq2seq", "tokenizer", "data")
_TINY_SPEECH = ("unit_extractor", "t2u", "vocoder")
_OF_PUBLISHED_PARTS = ("experiment=mixed", "experiment=finetune", "experiment=seamless_m4t_large_v2")
_STEPS = ("trainer.max_steps=2", "trainer.val_check_interval=2", "logger=none")
_SHORT = "{search:{_target_:voxzoo.components.search.SearchOptions,beam_size:2,max_length:8}}"


def tiny(words: Sequence[str]) -> list[str]:
    """The overrides of a page, and behind them what makes a tiny run of two steps of them."""
    keys = {word.partition("=")[0] for word in words}
    if any(word in words for word in _OF_PUBLISHED_PARTS):
        return [*words, *_STEPS]
    if "experiment=train_codec" in words:
        return [*words, "data=tiny", "codec=tiny", "task.codebooks=[1,2,4]", *_STEPS]
    staged = "experiment=quickstart" in words
    speaks = staged and "t2u=none" not in words
    more = [f"{role}=tiny" for role in (*_TINY, *(_TINY_SPEECH if speaks else ())) if role not in keys]
    if any(word in words for word in ("trainer=ddp", "trainer=fsdp2", "trainer=fsdp")):
        more += ["trainer.accelerator=cpu", "trainer.precision=32-true"]
        more += [] if "trainer.devices" in keys else ["trainer.devices=2"]
    if "frontend=tiny" in more and "speech_encoder=tiny" in more:
        more.append("frontend.stack=2")
    if "tokenizer=tiny" in more:
        more.append(f"tokenizer.vocab_size={200 if staged else 90}")
    if staged:
        more += [f"stages.{stage}.set.task={_SHORT}" for stage in ("first_pass", *(["second_pass"] if speaks else []))]
    elif "task=unit_vocoder" not in words:  # it has no text to search for
        more.append("+task.search={_target_:voxzoo.components.search.SearchOptions,beam_size:2,max_length:8}")
    return [*words, *more, *_STEPS]


def words_of(text: str) -> Iterator[list[str]]:
    """The commands of a block, comments left out and continued lines joined."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


class Shell:
    """A folder in which the blocks of one page run after each other.

    Args:
        folder: where they run.
        voxzoo: the fixture: `voxzoo(*words, cwd=, env=)` in a process.
        files: what a page takes for given: a pattern of words, and what makes it in a folder.
        environment: of the commands.
        trains: also what is marked `test-all`.
    """

    def __init__(
        self,
        folder: Path,
        voxzoo: Callable[..., Any],
        files: dict[str, Callable[[Path], Any]],
        environment: dict[str, str],
        trains: bool,
    ) -> None:
        self.folder, self.voxzoo, self.files, self.environment = folder, voxzoo, dict(files), dict(environment)
        self.trains, self.names = trains, {}

    def run(self, block: Block) -> None:
        """Run a block, or check it. Its place is noted on what it raises."""
        only_checks = block.mark == "test-all" and not self.trains
        self.give(block.text)
        try:
            self._run(block, only_checks)
        except BaseException as error:
            error.add_note(f"in {block}")
            raise

    def give(self, text: str) -> None:
        """Make the files that a text takes for given."""
        for pattern in [each for each in self.files if re.search(each, text)]:
            self.files.pop(pattern)(self.folder)

    def _run(self, block: Block, only_checks: bool) -> None:
        comment = re.match(r"(?:#[^\n]*\n)*?# ([\w./-]+\.(?:py|yaml))\b", block.text)
        if comment:
            path = self.folder / comment[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        elif block.language == "python":
            if not only_checks:
                self._python(block.text)
        elif block.language == "json":
            assert all(isinstance(json.loads(line), dict) for line in block.text.splitlines())
        elif block.text.startswith("$ "):
            command, _, shown = block.text[2:].partition("\n")
            if not only_checks:
                self._transcript(shlex.split(command), shown)
        else:
            for words in words_of(block.text):
                self._command(words, only_checks)

    def _command(self, words: list[str], only_checks: bool) -> None:
        environment = dict(self.environment)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            name, _, value = words.pop(0).partition("=")
            environment[name] = value
        if words[0] == "export":
            self.environment.update(dict([words[1].split("=", 1)]))
            return
        if words[0] == "sbatch":
            (script,) = [place for place, word in enumerate(words) if word.endswith(".sh")]
            assert (ROOT / words[script]).is_file()
            words, only_checks = ["voxzoo", "train", *words[script + 1 :]], True
        if words[:3] == ["python", "-m", "pytest"]:
            run_tests(self.folder / words[3], self.folder)
            return
        assert words[0] == "voxzoo", f"no command of this shell: {words[0]}; run it otherwise, or say why it is not run"
        if only_checks:
            if words[1] not in ("train", "check"):
                return  # on what would have been trained
            words = ["voxzoo", "check", *words[2:]]
        done = self.voxzoo(*_small(words[1:]), cwd=self.folder, env=environment)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"

    def _transcript(self, words: list[str], shown: str) -> None:
        assert words[0] == "voxzoo"
        done = self.voxzoo(*words[1:], cwd=self.folder, env=self.environment)
        said = [line.split() for line in f"{done.stdout}\n{done.stderr}".splitlines()]
        place = 0
        for line in shown.splitlines():
            if line.strip() and line.strip() != "...":
                assert line.split() in said[place:], f"{line!r} is not said any more:\n{done.stdout}\n{done.stderr}"
                place = said.index(line.split(), place) + 1

    def _python(self, text: str) -> None:
        tree = ast.fix_missing_locations(_SmallCalls().visit(ast.parse(text)))
        exec(compile(tree, "<page>", "exec"), self.names)


def run_tests(path: Path, folder: Path) -> int:
    """Call all tests of a file of a package in `folder`, which take no fixtures, and forget the package. Returns how
    many there were."""
    package, before = path.relative_to(folder).parts[0], list(sys.path)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(".".join(path.relative_to(folder).with_suffix("").parts))
        tests = [value for name, value in vars(module).copy().items() if name.startswith("test_")]
        for test in tests:
            test()
        return len(tests)
    finally:
        sys.path[:] = before
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            del sys.modules[name]


def _small(words: list[str]) -> list[str]:
    """A command of a page as it is run here."""
    verb = words[0]
    if verb in ("train", "check") and "--help" not in words:
        return [verb, *tiny(words[1:])]
    if verb == "evaluate" and "--recogniser" not in words:
        return [*words, "--limit", "2", "--recogniser", "none"]
    return words


class _SmallCalls(ast.NodeTransformer):
    """Lists of overrides get what makes them tiny; `max_steps=N` is two steps."""

    def visit_List(self, node: ast.List) -> ast.AST:
        words = [each.value for each in node.elts if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        if any(word.startswith("experiment=") for word in words):
            node.elts = [ast.Constant(word) for word in tiny(words)]
        return node

    def visit_keyword(self, node: ast.keyword) -> ast.AST:
        self.generic_visit(node)
        if node.arg == "max_steps":
            node.value = ast.Constant(2)
        return node
