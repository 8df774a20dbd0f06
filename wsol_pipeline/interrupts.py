"""Ctrl+C and SIGTERM: the first asks for a clean end, the second leaves at once.

A process has one set of signal handlers, so what they note is this module's own. Where nobody waits `gently`, the first
signal is Python's `KeyboardInterrupt`.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_asked: list[int] = []  # the first signal's number, once it has come
_gentle: list[bool] = []  # not empty while somebody waits for `asked` to turn true


def listen() -> None:
    """Take over the signals of this process; again after `ray.init`, which claims SIGTERM. Not for threads."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _on_signal)


def asked() -> bool:
    """Whether a signal has asked for the end."""
    return bool(_asked)


def exit_code() -> int:
    """The shell's convention: 130 after Ctrl+C, 143 after SIGTERM."""
    return 128 + (_asked[0] if _asked else signal.SIGINT)


@contextmanager
def gently() -> Iterator[None]:
    """Within, the first signal only makes `asked` true; raises `KeyboardInterrupt` at the end if one came."""
    listen()
    _gentle.append(True)
    try:
        yield
    finally:
        _gentle.pop()
    if asked():
        raise KeyboardInterrupt


@contextmanager
def borrowed() -> Iterator[None]:
    """Within, signals may be taken over, and are given back at the end with what they asked for: in a notebook."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        _asked.clear()
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _asked:
        _leave_at_once()
    _asked.append(number)
    if not _gentle:
        raise KeyboardInterrupt


def _leave_at_once() -> None:
    """End this process and all that it has started, a local Ray's included."""
    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.Error:
            continue  # it has ended by itself
    show_cursor = "\x1b[?25h" if sys.stdout.isatty() else ""  # a table that lives hides it
    os.write(sys.stderr.fileno(), f"{show_cursor}\ninterrupted twice: out at once\n".encode())
    os._exit(exit_code())
