"""wsol: every job by a word, the very code that `python rayjobs/<job>.py` runs.

wsol                          # all of them
wsol tune bas --help
wsol tune bas --config bas.yaml --trials 30
eval "$(wsol --completion bash)"
"""

import ast
import difflib
import importlib
import shutil
import sys
import textwrap
from pathlib import Path
from types import ModuleType

from wsol_pipeline.console.command_line import completion, version
from wsol_pipeline.console.main import run_main
from wsol_pipeline.errors import UsageError

HERE = Path(__file__).parent
WORDS = {"import": "import_dataset"}  # jobs that go by another word than their file's name


def commands() -> dict[str, str]:
    """The words of each job -> its file's name: `tune bas` is tune_bas.py."""
    files = sorted(path.stem for path in HERE.glob("[!_]*.py"))
    words = {file: word for word, file in WORDS.items()}
    return {words.get(file, file.replace("tune_", "tune ")): file for file in files}


def story(file: str) -> str:
    """What a job does, in a line: the first sentence of its docstring, read without importing it."""
    told = ast.get_docstring(ast.parse((HERE / f"{file}.py").read_text())) or ""
    return " ".join(told.split("\n\n")[0].split())


def overview() -> str:
    """All jobs, a line of the terminal each."""
    known = commands()
    indent, columns = max(map(len, known)) + len("  wsol   "), min(shutil.get_terminal_size().columns, 120)
    lines = (
        f"  wsol {words}".ljust(indent) + textwrap.shorten(story(file), columns - indent, placeholder=" …")
        for words, file in known.items()
    )
    return "\n".join(
        [version(), "", *lines, "", "wsol COMMAND --help explains one; wsol --completion bash completes all."]
    )


def find(args: list[str]) -> tuple[str, list[str]]:
    """The words of a job and what is left for it. Raises `UsageError` with the nearest for words that nobody knows."""
    known = commands()
    for count in (2, 1):
        if (words := " ".join(args[:count])) in known:
            return words, args[count:]
    asked = " ".join([args[0], *(word for word in args[1:2] if not word.startswith("-"))])
    near = difflib.get_close_matches(asked, known, n=1) or difflib.get_close_matches(args[0], known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"Unknown command {asked!r}.{hint} Known: {', '.join(known)}.")


def job(file: str) -> ModuleType:
    """A job's module: its `Options`, its `main`."""
    return importlib.import_module(f"rayjobs.{file}")


def main(args: list[str] | None = None) -> int:
    args = sys.argv[1:] if args is None else args
    match args:
        case [] | ["--help" | "-h" | "help"]:
            print(overview())
        case ["--version"]:
            print(version())
        case ["--completion", shell]:
            jobs = {words: getattr(job(file), "Options", None) for words, file in commands().items()}
            print(completion(shell, {words: options for words, options in jobs.items() if options}), end="")
        case _:
            words, rest = find(args)
            sys.argv = [f"wsol {words}", *rest]  # what usage and reports name
            return job(commands()[words]).main(rest) or 0
    return 0


def wsol() -> None:
    """The entry point of the package."""
    run_main(main)


if __name__ == "__main__":
    wsol()
