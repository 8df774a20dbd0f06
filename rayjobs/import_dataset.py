r"""Bring a dataset into the form that all jobs read: Parquet shards with a manifest, on a disk or in an object store.

    python rayjobs/import_dataset.py  # a generated dataset, in seconds
    python rayjobs/import_dataset.py --dataset ilsvrc --source ~/ILSVRC \
        --out s3://bucket/ilsvrc --workers 16
    # the options of one layout
    python rayjobs/import_dataset.py --dataset folder --help
    # what is wrong with it; writes nothing
    python rayjobs/import_dataset.py --dataset cub --source ~/CUB --check

The same command again continues an import that was cut short, and compares a finished one with its digests: shards
that were damaged are written anew. One import at a time writes to a place. Rows that cannot be
trusted are left out with a reason in quarantine.json beside the manifest; more of them than --max-bad, and it stops.
What was taken and what was passed over is counted at the end. An archive is unpacked into the user's cache first; with
several nodes, give a folder that all of them see.
"""

import argparse
import dataclasses
import json
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar

import tyro

from wsol_pipeline.console.command_line import command_line, how_to_run
from wsol_pipeline.console.main import run_main
from wsol_pipeline.data.importers import Source, importer
from wsol_pipeline.errors import UsageError
from wsol_pipeline.protocol import Role
from wsol_pipeline.redaction import redact

if TYPE_CHECKING:
    from wsol_pipeline.storage import Store

OptionsT = TypeVar("OptionsT")
LOCATED: dict[str, tuple[Role, ...]] = {"required": (Role.VAL, Role.TEST), "test": (Role.TEST,), "none": ()}


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
    boxes: Literal["required", "test", "none"] = "required"
    """Whether images of val and test must have boxes or masks. "none" leaves those that there are: of such a dataset
    models are chosen by other means (--select-by), and where they localize is not measured. "test" leaves those of val
    alone: it is measured on test."""
    audit: bool = False
    """Also keep masks (synthetic with --objects, voc, coco) and boxes (synthetic, voc) of training images, in shards
    that only an evaluation on these images opens. The dataset is the same without them."""
    max_bad: Annotated[float | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Share of rows (0 to 1) that may be left out as bad before the import is refused. By default 0.001 of a published
    benchmark; of your own images 2 of them, or 0.01 if that is more."""
    workers: int = 1
    """Shards written at the same time, as Ray tasks of one CPU each; 1 writes them in this process, without Ray. The
    threads of --check."""
    check: bool = False
    """Look at the whole source for what is wrong (counts, files, boxes, images in two splits), and write nothing."""
    list_all: bool = False
    """Name all images, files and lines of each kind of fault, not the first 10."""
    shard_mb: int = 128
    """Size of a shard in MiB: 64 to 256 suit an object store."""

    def __post_init__(self) -> None:
        if self.max_bad is not None and not 0 <= self.max_bad <= 1:
            raise UsageError(f"--max-bad is a share of rows in 0..1 but got {self.max_bad}.")
        if self.workers < 1 or self.shard_mb < 1:
            raise UsageError(f"--workers and --shard-mb must be at least 1 but got {self.workers} and {self.shard_mb}.")
        if not re.fullmatch(r"[A-Za-z0-9._-]{0,128}", self.name):
            raise UsageError(f"--name may have letters, digits, '.', '_' and '-', 128 at most, but got {self.name!r}.")

    @property
    def place(self) -> Path:
        """The source, wherever it is looked at from."""
        return self.source.expanduser().resolve()

    @property
    def at_most(self) -> int:
        """How many of a kind of fault are named."""
        return sys.maxsize if self.list_all else 10


def parse(argv: list[str]) -> ImportConfig[Any]:
    """The command line as a config; which options there are depends on `--dataset`."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--dataset", default=ImportConfig.dataset)
    layout = importer(first.parse_known_args(argv)[0].dataset)
    return command_line(ImportConfig[layout.Options], argv, f"{__doc__}\n{layout.__doc__}")  # type: ignore[name-defined]


def read(config: ImportConfig[Any]) -> Source:
    """The source as its importer finds it."""
    from wsol_pipeline.data.archives import left_beside, unpacked

    found = importer(config.dataset).read(unpacked(config.place), config.options)
    located = tuple(role for role in LOCATED[config.boxes] if role in found.located)
    return dataclasses.replace(found, located=located, beside=left_beside(config.place))


def origin(config: ImportConfig[Any]) -> dict[str, Any]:
    """What makes two imports the same one."""
    place = "" if config.dataset == "synthetic" else str(config.place)
    options = dataclasses.asdict(config.options)
    facts = {"importer": config.dataset, "source": place, "options": options, "shard_mb": config.shard_mb}
    return redact(facts if config.boxes == "required" else facts | {"boxes": config.boxes})


def audit(config: ImportConfig[Any], out: "Store") -> None:
    """Keep masks and boxes of training images beside the dataset."""
    from wsol_pipeline.data.audit import write_audit
    from wsol_pipeline.data.dataset import open_dataset

    source = read(config)
    kept, without = write_audit(source.rows, source.rules, out, open_dataset(out.uri).fingerprint)
    print(f"Masks or boxes of {kept} training images are kept apart, for evaluations alone; {without} have none.")


def main(args: list[str] | None = None) -> int:
    config = parse(sys.argv[1:] if args is None else args)
    from wsol_pipeline.console.imports import alone, check, counted, reporter, summary, tell, tell_refusal
    from wsol_pipeline.data.findings import LEFT_OUT, Refused, of_rows
    from wsol_pipeline.data.ingest import faults_of, import_dataset
    from wsol_pipeline.data.shards import QUARANTINE
    from wsol_pipeline.storage import Store

    if config.check:
        with counted(config.place):
            source = read(config)
        return check(source, config.workers, config.max_bad, config.at_most)
    out = Store.at(config.out or f"runs/data/{config.dataset}")
    bar, on_shard = reporter()
    try:
        with counted(config.place):
            source = read(config)
        with alone(out) as check_alone, bar:
            manifest = import_dataset(
                source,
                out,
                name=config.name or config.dataset,
                origin=origin(config),
                max_bad=config.max_bad,
                workers=config.workers,
                shard_bytes=config.shard_mb * 2**20,
                on_shard=on_shard,
                check=check_alone,
            )
            if config.audit:
                audit(config, out)
    except Refused as error:
        tell_refusal(error, config.at_most)
        raise
    if any(manifest.quarantine.values()):
        tell(of_rows(faults_of(json.loads(out.read(QUARANTINE))), LEFT_OUT), config.at_most)
    print(summary(manifest, out))
    weights = "" if source.benchmark else " --weights imagenet"  # a recipe for photographs comes with them
    by = "" if manifest.located else " --select-by evidence"
    place = shlex.quote(config.out or str(out))
    print(f"The dataset is at {out}. Next: {how_to_run('tune_bas')} --data {place}{weights}{by}")
    return 0


if __name__ == "__main__":
    run_main(main)
