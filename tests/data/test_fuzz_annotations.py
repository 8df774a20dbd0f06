"""Annotations made to do harm, in every layout: what is stored is sound, what is not stored is named or refused."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.data.doctor import examine
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.data.schema import Kind
from wsol_pipeline.errors import WsolError
from wsol_pipeline.storage import Store

LAYOUTS = ["folder", "wsolevaluation", "cub", "tinyimagenet", "ilsvrc", "voc", "coco"]
HOSTILE = [
    *(
        b"nan",
        b"NaN",
        b"inf",
        b"-Infinity",
        b"-5",
        b"1e999",
        b"9" * 400,
        b"9" * 6000,
        b"0x10",
        b"1_0",
        b"-0",
        b"4.5",
        b"",
    ),
    *(
        b"null",
        b"true",
        b"[]",
        b"{}",
        b"[[[[1]]]]",
        b"[" * 100_000,
        b'"',
        b"'",
        b"<",
        b"&a;",
        b"<a><b/>",
        b"<!--",
        b"]]>",
    ),
    *(
        b"../../outside/secret.jpg",
        b"/etc/passwd",
        b"..",
        b".",
        b"/",
        b"~",
        b"C:\\x",
        b"%00",
        b"x" * 5000,
        "é".encode() * 300,
    ),
    *(
        b"\0",
        b"\n",
        b"\r",
        b"\t",
        b",",
        b" ",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        "\u0663".encode(),
        "\u00b2".encode(),
        b"\\ud800",
    ),
    b'<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]>',
    b'<?xml version="1.0" encoding="no-such-code"?>',
]
TOKEN = re.compile(rb"[\w.-]+")


def mutated(text: bytes, rng: random.Random) -> bytes:
    """An annotation with a word or line replaced, doubled or gone, with hostile bytes, or cut off."""
    words = list(TOKEN.finditer(text))
    lines = text.splitlines(keepends=True)
    match rng.randrange(8):
        case 0 | 1 | 2:
            word = rng.choice(words)
            return text[: word.start()] + rng.choice(HOSTILE) + text[word.end() :]
        case 3:  # another word of the file: duplicate ids, swapped corners, other labels
            word, other = rng.choice(words), rng.choice(words)
            return text[: word.start()] + other.group() + text[word.end() :]
        case 4:
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
        case 5:
            lines.pop(rng.randrange(len(lines)))
        case 6:
            at = rng.randrange(len(text) + 1)
            return text[:at] + rng.choice(HOSTILE) + text[at:]
        case 7:
            return text[: rng.randrange(len(text))]
    return b"".join(lines)


def check_stored(place: str, images: set[bytes]) -> set[str]:
    """Ids of what an import has stored: images of the source, with labels that there are and boxes on the image."""
    dataset, ids = open_dataset(place), set()
    for split in (dataset.train, dataset.val, dataset.test()):
        for shard in split.shards:
            for row in pq.read_table(f"{place}/{shard.name}").to_pylist():
                ids.add(row["id"])
                assert row["image"] in images
                assert row["labels"]
                assert all(0 <= label < len(dataset.classes) for label in row["labels"] + row.get("box_labels", []))
                boxes = np.array(row.get("boxes", [])).reshape(-1, 4)
                assert np.isfinite(boxes).all()
                assert ((boxes[:, :2] <= boxes[:, 2:]) & (boxes[:, :2] >= 0) & (boxes[:, 2:] <= (40, 30))).all()
    return ids


def taken_out(before: bytes, after: bytes, name: str) -> bool:
    """Whether a list has an id, a part of it as a path, or its file's name without the ending less often."""
    old, new = (re.split(rb'[\s,"]+', text) for text in (before, after))
    forms = (form.encode() for form in {name, Path(name).stem, *Path(name).parts})
    return any(new.count(form) < old.count(form) for form in forms)


def attempt(read, out: Path, images: set[bytes]) -> tuple[set[str], set[str]] | None:
    """Ids that were stored and ids that were left out; None if the whole was refused."""
    try:
        source = read()
        findings, _ = examine(source)
        manifest = import_dataset(source, Store.at(out), name="fuzz", origin={}, max_bad=0.4)
    except WsolError:
        assert not (out / "manifest.json").exists()
        return None
    if manifest.left_out:  # images without an object are counted, not named
        return None
    bad = json.loads((out / "quarantine.json").read_bytes())
    assert all(row["kind"] in list(Kind) and row["reason"] for row in bad)
    assert sum(manifest.quarantine.values()) == len(bad)
    items = [item for finding in findings for item in finding.items]
    assert all(any(item.startswith(f"{row['id']}: ") for item in items) for row in bad)  # the doctor names it too
    assert all(line.isprintable() for finding in findings for line in finding.lines(99))
    return check_stored(str(out), images), {row["id"] for row in bad}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("count", [20, pytest.param(720, marks=pytest.mark.slow)])  # 5,040 in seven layouts
@pytest.mark.parametrize("name", LAYOUTS)
def test_mutated_annotations(layouts, tmp_path, jpeg, name, count):
    root, secret = tmp_path / "in", tmp_path / "outside/secret.jpg"
    read = layouts(name, root)
    secret.parent.mkdir()
    secret.write_bytes(jpeg(999))
    images = {path.read_bytes() for path in root.rglob("*") if path.suffix in (".jpg", ".JPEG")}
    sound, none = attempt(read, tmp_path / "sound", images) or (set(), set())
    assert (len(sound), len(none)) == (8, 0)
    files = sorted(path for path in root.rglob("*") if path.suffix in (".txt", ".csv", ".xml", ".json"))
    rng = random.Random(f"{name} {count}")
    refused = 0
    for number in range(count):
        path = rng.choice(files)
        before = path.read_bytes()
        after = mutated(before, rng)
        path.write_bytes(after)
        found = attempt(read, tmp_path / f"out/{number}", images)
        path.write_bytes(before)
        if found is None:
            refused += 1
            continue
        stored, bad = found
        for gone in sound - stored - bad:
            assert taken_out(before, after, gone), (path, after)
    assert refused < count
    assert {path.name for path in tmp_path.iterdir()} <= {"in", "outside", "out", "sound"}
    assert [path.name for path in secret.parent.iterdir()] == ["secret.jpg"]
