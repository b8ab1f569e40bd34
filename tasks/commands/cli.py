"""The `voxzoo` command. Each verb is a module of `tasks/commands` with HELP, EXAMPLE, configure and run."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import os
import signal
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import Any

from ...components.errors import UserError, printable
from ...components.lines import json_line
from ...components.online import online
from ..processes.forked import is_command
from ..processes.signals import EXIT_CODES, STOPPED, Interrupted, tell_launcher

VERBS = (
    "train",
    "check",
    "evaluate",
    "score",
    "ablate",
    "report",
    "translate",
    "parts",
    "data",
    "units",
    "codec",
    "distil",
    "import",
    "export",
    "consolidate",
)
_FILES = {"import": "import_model", "export": "export_model"}  # `import` cannot be the name of a module


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit status: 0 done, 1 failed, 2 bad call, 75 stopped and requeueable, 130 Ctrl-C."""
    if argv is None:
        is_command(main)
    for stream in (sys.stdout, sys.stderr):  # a name that cannot be printed ends nothing
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    words = list(sys.argv[1:] if argv is None else argv)
    verb = next((word for word in words if not word.startswith("-")), None)
    parser = _parser(verb)
    arguments = _parse(parser, words)
    if arguments.verb is None:
        parser.print_help()
        return 2
    module = _module(arguments.verb)
    status, speaks = 1, True
    result: dict[str, Any]
    # Under --json standard output holds one object and nothing else, whatever a library prints: also below Python.
    how = _only_json() if arguments.json else contextlib.nullcontext(sys.stdout)
    with how as out, online(arguments.online):
        try:
            result = module.run(arguments)
            status = 0 if result.get("status", "ok") == "ok" else 1
        except KeyboardInterrupt:
            result, status = {"status": "failed", "error": "interrupted"}, 130
        except Interrupted as error:
            result, status = {"status": "failed", "error": str(error)}, EXIT_CODES[signal.Signals(error.number)]
            speaks = _is_first()  # all processes of a run were stopped
        except BrokenPipeError:
            return 1
        except Exception as error:
            result, status = _failure(error, arguments)
        if arguments.json and _is_first():
            print(json_line(result, default=str), file=out, flush=True)
    if status == STOPPED:
        tell_launcher("stopped")
    if status and speaks and result.get("error"):
        print(printable(f"voxzoo {arguments.verb}: {result['error']}"), file=sys.stderr)
    return status


def _is_first() -> bool:
    """Whether this is the one process of a run that answers: DDP, torchrun and srun start the same command several
    times."""
    return next((os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ), "0") == "0"


def _parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Parse; overrides may also stand behind options, where argparse takes no more positional words."""
    arguments, rest = parser.parse_known_args(words)
    loose = [word for word in rest if not word.startswith("-")]
    if len(loose) < len(rest) or (loose and not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if loose:
        arguments.overrides = [*arguments.overrides, *loose]
    return arguments


def _failure(error: Exception, arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    if arguments.traceback:
        traceback.print_exc()
    if isinstance(error, UserError | OSError):
        code = getattr(error, "code", 1) if isinstance(error, UserError) else 1  # of a stage that failed: its own
        return {"status": "failed", "error": str(error)}, code if code > 0 else 1
    from lightning.fabric.utilities.exceptions import MisconfigurationException  # takes seconds

    text = " ".join(str(error).split())
    if isinstance(error, MisconfigurationException):  # Lightning's word on a setting of `trainer`
        return {"status": "failed", "error": f"trainer: {text}"}, 1
    said = text.lower()
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(word in said for word in _NO_MEMORY)):
        advice = {
            "train": "smaller batches (data.batch_seconds, data.batch_size) or fewer data.num_workers need less; "
            "`voxzoo check --memory GB` says what fits. The same command goes on from the last save",
        }.get(arguments.verb, "a smaller --batch-size or a shorter --segment, where there is one, needs less")
        return {"status": "failed", "error": f"out of memory{f' ({text[:200]})' if text else ''}; {advice}"}, 1
    if isinstance(error, RuntimeError) and any(word in said for word in _LOST):
        lost = "another process of this run has ended (killed, or out of memory?)"
        text = f"{lost}; its own lines say why. The same command goes on from the last save"
        return {"status": "failed", "error": text}, 1
    own = _place_in_own_code(error)
    if own is not None:
        text = error.msg if isinstance(error, SyntaxError) else text
        return {"status": "failed", "error": f"{own}: {type(error).__name__}: {text}"}, 1
    hint = "" if arguments.traceback else " (this should not happen: --traceback shows where)"
    return {"status": "failed", "error": f"{type(error).__name__}: {text}{hint}"}, 1


def _place_in_own_code(error: Exception) -> str | None:
    """File and line in the user's own code (a part, a callback) where an error arose, or None: neither in voxzoo nor in
    an installed package."""
    if isinstance(error, SyntaxError) and error.filename is not None and _is_own(error.filename, ""):
        return f"{_shown_path(error.filename)}:{error.lineno}"
    place = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        if _is_own(frame.f_code.co_filename, str(frame.f_globals.get("__name__"))):
            place = f"{_shown_path(frame.f_code.co_filename)}:{line}"
    return place


def _is_own(file: str, module: str) -> bool:
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    installed = [path for key, path in sysconfig.get_paths().items() if key in kinds]
    own = Path(file).is_file() and not any(Path(file).is_relative_to(folder) for folder in installed)
    return own and module.partition(".")[0] not in ("voxzoo", "__main__") and "site-packages" not in file


def _shown_path(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


# What torch says on a CPU and on a GPU, and C++ below it.
_NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "out of memory", "not enough memory", "bad_alloc")

# What gloo, NCCL and the store where processes meet say when a process at the other end is gone.
_LOST = (
    "connection closed by peer", "connection reset by peer", "broken pipe", "failed to recv, got 0 bytes",
    "ncclremoteerror", "remote process exited", "communicator was aborted",
)  # fmt: skip


@contextlib.contextmanager
def _only_json():
    """Point file descriptor 1 at standard error for the time of the run; yields the real standard output."""
    sys.stdout.flush()
    real = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield real
    finally:
        real.flush()
        os.dup2(real.fileno(), 1)
        real.close()


def _module(verb: str) -> Any:
    return importlib.import_module(f".{_FILES.get(verb, verb)}", __package__)


def _help(verb: str) -> str:
    """HELP of a command module, without importing it."""
    tree = ast.parse((Path(__file__).parent / f"{_FILES.get(verb, verb)}.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "HELP" for t in node.targets):
            return str(ast.literal_eval(node.value))
    raise LookupError(f"tasks/commands/{verb}.py has no HELP")


def _parser(verb: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="voxzoo",
        description="A component zoo for speech translation: compose parts in YAML, train, evaluate and translate.",
        epilog="voxzoo VERB --help shows an example of each.",
    )
    parser.add_argument(
        "--version",
        action=_Version,
        nargs=0,
        dest=argparse.SUPPRESS,
        default=argparse.SUPPRESS,
        help="show program's version number and exit",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for name in VERBS:
        if name != verb:
            verbs.add_parser(name, help=_help(name))  # only the verb in use is imported: importing costs seconds
            continue
        module = _module(name)
        sub = verbs.add_parser(
            name,
            help=module.HELP,
            description=module.HELP,
            epilog=f"example:\n  {module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.configure(sub)
        for target in _leaves(sub):
            target.add_argument("--json", action="store_true", help="print exactly one JSON object on standard output")
            target.add_argument(
                "--online",
                action="store_true",
                help="fetch published models that are given, or that files name, by their hub name; without it nothing "
                "goes online",
            )
            target.add_argument("--traceback", action="store_true", help="show where an error arose")
    return parser


def _leaves(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parsers that take the arguments: a verb's own, or those of its subcommands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return list({id(p): p for p in action.choices.values()}.values())
    return [parser]


class _Version(argparse.Action):
    """As argparse's own, but the version is looked up when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"voxzoo {_version()}")
        parser.exit()


def _version() -> str:
    import importlib.metadata  # half of what `voxzoo --help` would take

    try:
        return importlib.metadata.version("voxzoo")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    raise SystemExit(main())
