r"""Bring a dataset into the form that all jobs read: Parquet shards with a manifest, on a disk or in an object store.

    python rayjobs/import_dataset.py  # a generated dataset, in seconds
    python rayjobs/import_dataset.py --dataset ilsvrc --source ~/ILSVRC \
        --out s3://bucket/ilsvrc --workers 16
    # the options of one layout
    python rayjobs/import_dataset.py --dataset folder --help
    # what is wrong with it; writes nothing
    python rayjobs/import_dataset.py --dataset cub --source ~/CUB --check

The same command again continues an import that was cut short, and leaves a finished one alone. Rows that cannot be
trusted are left out with a reason in quarantine.json beside the manifest; more of them than --max-bad, and it stops.
An archive is unpacked into the user's cache first; with several nodes, give a folder that all of them see.
"""

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro
from rich.progress import MofNCompleteColumn, Progress

from wsol_pipeline.console.command_line import command_line
from wsol_pipeline.console.main import run_main
from wsol_pipeline.console.progress import is_live
from wsol_pipeline.data.archives import unpacked
from wsol_pipeline.data.dataset import Dataset
from wsol_pipeline.data.doctor import examine
from wsol_pipeline.data.importers import Source, importer
from wsol_pipeline.data.ingest import ShardReport, import_dataset
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.redaction import redact
from wsol_pipeline.storage import Store

OptionsT = TypeVar("OptionsT")


@dataclass(frozen=True)
class ImportConfig(Generic[OptionsT]):
    """What to import, from where, to where."""

    options: Annotated[OptionsT, tyro.conf.arg(name="")]
    dataset: str = "synthetic"
    """Layout of the source: a file name in wsol_pipeline/data/importers (cub, coco, folder, ...)."""
    source: Path = Path()
    """Folder of the raw dataset, or its tar or zip archive. The synthetic one needs none."""
    out: Annotated[str, tyro.conf.arg(help_behavior_hint="")] = ""
    """Where the dataset goes: a folder or s3://bucket/prefix. By default ./runs/data/<dataset>."""
    name: Annotated[str, tyro.conf.arg(help_behavior_hint="")] = ""
    """Name of the dataset in tables and tracking. By default the layout's name."""
    max_bad: float = 0.001
    """Share of rows (0 to 1) that may be left out as bad before the import is refused."""
    workers: int = 1
    """Shards written at the same time, as Ray tasks of one CPU each; 1 writes them in this process, without Ray. The
    threads of --check."""
    check: bool = False
    """Look at the whole source for what is wrong (counts, files, boxes, images in two splits), and write nothing."""
    shard_mb: int = 128
    """Size of a shard in MiB: 64 to 256 suit an object store."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad <= 1:
            raise UsageError(f"--max-bad is a share of rows in 0..1 but got {self.max_bad}.")
        if self.workers < 1 or self.shard_mb < 1:
            raise UsageError(f"--workers and --shard-mb must be at least 1 but got {self.workers} and {self.shard_mb}.")
        if not re.fullmatch(r"[A-Za-z0-9._-]{0,128}", self.name):
            raise UsageError(f"--name may have letters, digits, '.', '_' and '-', 128 at most, but got {self.name!r}.")


def parse(argv: list[str]) -> ImportConfig[Any]:
    """The command line as a config; which options there are depends on `--dataset`."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--dataset", default=ImportConfig.dataset)
    layout = importer(first.parse_known_args(argv)[0].dataset)
    return command_line(ImportConfig[layout.Options], argv, __doc__)  # type: ignore[name-defined]


def reporter() -> tuple[AbstractContextManager[Any], Callable[[ShardReport, int, int], None]]:
    """How progress is told: a bar for a person at a terminal, a line for each shard otherwise."""
    if not is_live():
        return nullcontext(), lambda report, done, total: print(describe(report, done, total), flush=True)
    bar = Progress(*Progress.get_default_columns(), MofNCompleteColumn())
    task = bar.add_task("shards")
    return bar, lambda report, done, total: bar.update(task, completed=done, total=total)


def describe(report: ShardReport, done: int, total: int) -> str:
    """One line on one shard."""
    stored = f"{report.shard['name']} {report.shard['rows']} rows" if report.shard else "no row fit to be stored"
    verb = " (kept from an earlier run)" if report.kept else ""
    return f"shard {done}/{total}: {stored}{verb}" + (f", {len(report.bad)} bad rows" if report.bad else "")


def check(source: Source, threads: int) -> int:
    """Print what is wrong with a source; the exit code is that of bad data if anything but a note is."""
    with Progress(disable=not is_live()) as bar:
        task = bar.add_task("images")
        findings = examine(source, threads, lambda done, total: bar.update(task, completed=done, total=total))
    for finding in findings:
        print("\n".join(finding.lines()))
    problems = sum(not finding.is_note for finding in findings)
    print(f"{problems} problems" if problems else "No problem was found.")
    return DataError.exit_code if problems else 0


def main(args: list[str] | None = None) -> int:
    config = parse(sys.argv[1:] if args is None else args)
    source = config.source.expanduser().resolve()
    if config.check:
        return check(importer(config.dataset).read(unpacked(source), config.options), config.workers)
    out = Store.at(config.out or f"runs/data/{config.dataset}")
    origin = redact({
        "importer": config.dataset,
        "source": "" if config.dataset == "synthetic" else str(source),
        "options": dataclasses.asdict(config.options),
        "shard_mb": config.shard_mb,
    })  # fmt: skip
    bar, on_shard = reporter()
    with bar:
        manifest = import_dataset(
            importer(config.dataset).read(unpacked(source), config.options),
            out,
            name=config.name or config.dataset,
            origin=origin,
            max_bad=config.max_bad,
            workers=config.workers,
            shard_bytes=config.shard_mb * 2**20,
            on_shard=on_shard,
        )
    rows = ", ".join(f"{role.value} {info.rows}" for role, info in manifest.splits.items())
    print(
        f"{manifest.name}: {len(manifest.classes)} classes, {rows}; {sum(manifest.quarantine.values())} rows left out;"
    )
    for what, count in manifest.left_out.items():
        print(f"not offered: {count} {what}")
    print(f"fingerprint {Dataset(out.uri, manifest).fingerprint}")
    print(f"The dataset is at {out}. Next: python rayjobs/tune_bas.py --data {config.out or out}")
    return 0


if __name__ == "__main__":
    run_main(main)
