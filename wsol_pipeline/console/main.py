"""The one place that turns a failure into a line and an exit code."""

import io
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from wsol_pipeline import interrupts, redaction
from wsol_pipeline.errors import WsolError


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run a job's `main` and leave with its exit code; a `WsolError` becomes one line on stderr.

    Ctrl+C becomes 130, SIGTERM 143; a second one ends everything at once.
    """
    interrupts.listen()
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a sign, as ASCII ones do, ends nothing
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    redaction.install()
    try:
        code = main()
    except WsolError as error:
        print(f"error: {redaction.printable(str(error))}", file=sys.stderr, flush=True)
        code = error.exit_code
    except BrokenPipeError:  # who read what was printed has ended, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python says so again when it ends
        code = 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("interrupted: the same command continues", file=sys.stderr, flush=True)
        code = interrupts.exit_code()
    sys.exit(code or 0)
