"""Tiny datasets, and a Ray of this room's own."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsol_pipeline.data.dataset import Dataset, open_dataset
from wsol_pipeline.data.doctor import examine
from wsol_pipeline.data.importers import Source, importer
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.data.schema import Row
from wsol_pipeline.protocol import Role
from wsol_pipeline.storage import Store


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Nothing of a test is cached in the user's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _avx2(monkeypatch):
    """torchvision, which pixels are compared with, goes by way of floats on a CPU without AVX2; ours never does."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")


@pytest.fixture(scope="session")
def jpeg():
    """`jpeg(seed, size)`: the bytes of a smooth coloured JPEG of `size` = (width, height)."""

    def make(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
        sink = io.BytesIO()
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(sink, "JPEG", quality=92)
        return sink.getvalue()

    return make


@pytest.fixture(scope="session")
def png():
    """`png()`: the bytes of a mask of 40x30 with an object."""

    def make() -> bytes:
        sink = io.BytesIO()
        mask = Image.new("L", (40, 30))
        mask.paste(255, (5, 5, 20, 20))
        mask.save(sink, "PNG")
        return sink.getvalue()

    return make


@pytest.fixture(scope="session")
def make_source(jpeg):
    """`make_source(train, val, test)`: rows of 3 classes; every image is another, boxes come one or two to an image."""

    def rows(counts: dict[Role, int]):
        for part, (role, count) in enumerate(counts.items()):
            for number in range(count):
                label = number % 3
                size = (40 + number % 5, 30 + number % 7)
                boxes = ((1.0, 2.0, 20.0, 25.0), (5.5, 6.0, 9.0, 8.25))[: 1 + number % 2]
                yield Row(
                    role,
                    f"{role.value}-{number:04d}",
                    (label,),
                    jpeg(1000 * part + number, size),
                    size,
                    boxes,
                    (label,) * len(boxes),
                )

    def make(train: int = 150, val: int = 11, test: int = 7) -> Source:
        counts = {Role.TRAIN: train, Role.VAL: val, Role.TEST: test}
        return Source(("ant", "bee", "cat"), "inclusive0", list(rows(counts)))

    return make


@pytest.fixture(scope="session")
def layouts(jpeg):
    """`layouts(name, root)`: a small faithful copy of a layout at `root`, and how to read it again.

    Two classes with 4 training, 2 validation and 2 test images of 40x30, each with the box (1, 2, 20, 25).
    """
    lay = {"folder": _folder, "wsolevaluation": _wsolevaluation, "cub": _cub, "tinyimagenet": _tinyimagenet}
    lay |= {"ilsvrc": _ilsvrc, "voc": _voc, "coco": _coco}

    def make(name: str, root: Path):
        module = importer(name)
        seeds = iter(range(8))

        def put(path: str, content: str | None = None) -> None:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(jpeg(next(seeds)) if content is None else content.encode())

        options = module.Options(**lay[name](put))
        return lambda: module.read(root, options)

    return make


MEMBERS = {Role.TRAIN: 4, Role.VAL: 2, Role.TEST: 2}
XML = (
    "<annotation><size><width>40</width><height>30</height></size><object><name>{}</name><bndbox><xmin>1</xmin>"
    "<ymin>2</ymin><xmax>20</xmax><ymax>25</ymax></bndbox></object></annotation>"
)


def _lines(lines) -> str:
    return "".join(f"{line}\n" for line in lines)


def _folder(put) -> dict[str, str]:
    names = [f"{role.value}/{'ab'[n % 2]}/{n}.jpg" for role, count in MEMBERS.items() for n in range(count)]
    for name in names:
        put(name)
    put("boxes.csv", _lines(["path,x0,y0,x1,y1", *(f"{name},1,2,20,25" for name in names[4:])]))
    return {}


def _lists(put, folder: str, names: list[str], labels: list[int]) -> None:
    put(f"{folder}/image_ids.txt", _lines(names))
    put(f"{folder}/class_labels.txt", _lines(f"{name},{label}" for name, label in zip(names, labels, strict=True)))
    put(f"{folder}/image_sizes.txt", _lines(f"{name},40,30" for name in names))
    put(f"{folder}/localization.txt", _lines(f"{name},1,2,20,25" for name in names))


def _wsolevaluation(put) -> dict[str, str]:
    for role, count in MEMBERS.items():
        names = [f"{role.value}/{n % 2}/{n}.jpg" for n in range(count)]
        for name in names:
            put(f"images/{name}")
        _lists(put, f"metadata/{role.value}", names, [n % 2 for n in range(count)])
    return {"images": "images"}


def _cub(put) -> dict[str, str]:
    names = ["001.a", "002.b"]
    files = [f"{names[n % 2]}/{n}.jpg" for n in range(6)]
    for name in files:
        put(f"images/{name}")
    put("classes.txt", _lines(f"{n} {name}" for n, name in enumerate(names, 1)))
    put("images.txt", _lines(f"{n} {name}" for n, name in enumerate(files, 1)))
    put("image_class_labels.txt", _lines(f"{n} {2 - n % 2}" for n in range(1, 7)))
    put("train_test_split.txt", _lines(f"{n} {int(n <= 4)}" for n in range(1, 7)))
    put("bounding_boxes.txt", _lines(f"{n} 1 2 19 23" for n in range(1, 7)))
    held_out = [f"{name}/v.jpg" for name in names]
    for name in held_out:
        put(f"CUBV2/{name}")
    _lists(put, "CUBV2", held_out, [0, 1])
    return {"cubv2": "CUBV2"}


def _tinyimagenet(put) -> dict[str, int]:
    for number, wnid in enumerate(("n01", "n02")):
        names = [f"{wnid}_{n}.JPEG" for n in range(3)]
        put(f"train/{wnid}/{wnid}_boxes.txt", _lines(f"{name}\t1\t2\t20\t25" for name in names))
        for name in names:
            put(f"train/{wnid}/images/{name}")
        put(f"val/images/val_{number}.JPEG")
    put("val/val_annotations.txt", _lines(f"val_{n}.JPEG\tn0{n + 1}\t1\t2\t20\t25" for n in range(2)))
    put("wnids.txt", "n02\nn01\n")
    put("words.txt", "n01\ttench\nn02\tspringer\n")
    return {"val_per_class": 1}


def _ilsvrc(put) -> dict[str, str]:
    for n in range(4):
        put(f"Data/CLS-LOC/train/n0{n % 2 + 1}/{n}.JPEG")
    for n in range(4):
        put(f"Data/CLS-LOC/val/val_{n}.JPEG")
        put(f"Annotations/CLS-LOC/val/val_{n}.xml", XML.format(f"n0{n % 2 + 1}"))
    put("LOC_synset_mapping.txt", "n01 tench\nn02 springer\n")
    put("splits/val.txt", "val_0\nval_1\n")
    put("splits/test.txt", "val_2\nval_3\n")
    return {}


def _voc(put) -> dict[str, str]:
    start = 0
    for role, count in MEMBERS.items():
        names = [f"2007_{n:06d}" for n in range(start, start + count)]
        for name in names:
            put(f"JPEGImages/{name}.jpg")
            put(f"Annotations/{name}.xml", XML.format(["cat", "dog"][int(name[-1]) % 2]))
        put(f"ImageSets/Main/{role.value}.txt", _lines(names))
        start += count
    put("names.txt", "cat\ndog\n")
    return {"class_names": "names.txt"}


def _coco(put) -> dict[str, str]:
    for role, count in MEMBERS.items():
        names = [f"{role.value}{n}.jpg" for n in range(count)]
        for name in names:
            put(f"{role.value}/{name}")
        images = [{"id": n, "file_name": name, "width": 40, "height": 30} for n, name in enumerate(names)]
        notes = [{"id": n, "image_id": n, "category_id": 3 + n % 2, "bbox": [1, 2, 19, 23]} for n in range(count)]
        categories = [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}]
        data = {"images": images, "annotations": notes, "categories": categories}
        put(f"annotations/instances_{role.value}.json", json.dumps(data))
    return {role.value: role.value for role in MEMBERS}


@pytest.fixture(scope="session")
def told():
    """`told(source)`: all that is wrong with a source, one line each, as --check tells it."""

    def make(source: Source) -> str:
        return "\n".join(item for finding in examine(source)[0] if not finding.is_note for item in finding.items)

    return make


@pytest.fixture(scope="session")
def write(make_source):
    """`write(where, source)`: import a source (default: the tiny one) into several small shards and open it."""

    def make(where: Path | str, source: Source | None = None, **options) -> Dataset:
        settings = {"name": "tiny", "origin": {"importer": "test"}, "shard_bytes": 60_000, "max_bad": 0.001} | options
        import_dataset(source or make_source(), Store.at(where), **settings)
        return open_dataset(str(where))

    return make


@pytest.fixture(scope="session")
def tiny(write, tmp_path_factory) -> Dataset:
    """150 training, 11 validation, 7 test rows. Nobody changes its files."""
    return write(tmp_path_factory.mktemp("tiny"))
