"""Folders that belong to this user alone: what lies in them is used again, so nobody else may put it there."""

import contextlib
import os
import stat
from pathlib import Path


def own_folder(folder: Path) -> Path:
    """`folder`, made for this user alone if it is not there yet.

    Raises `PermissionError` if it is a link, another user's, or one that others may write to; `OSError` if it cannot be
    made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if wrong := distrust(folder):
        raise PermissionError(f"{folder} {wrong}")
    return folder


def distrust(folder: Path) -> str:
    """Why what lies in `folder` may be somebody else's, in words; "" if it cannot be. Raises `OSError`."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return "is a link or a file, not a folder"
    if found.st_uid != os.geteuid():
        return f"belongs to another user (uid {found.st_uid}, not {os.geteuid()})"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"may be written to by others (mode {stat.S_IMODE(found.st_mode):o}): remove it, or chmod 700 it"
    return ""
