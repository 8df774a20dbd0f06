"""Files as people have them: each is read, or named and counted; nothing vanishes, and no cause hides another."""

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import unicodedata
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageCms

from rayjobs import import_dataset as job
from wsol_pipeline.console.main import run_main
from wsol_pipeline.data import findings
from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.data.doctor import examine
from wsol_pipeline.data.headers import orientation, without_orientation
from wsol_pipeline.data.importers import folder
from wsol_pipeline.data.photographs import photograph
from wsol_pipeline.data.reader import ReadConfig, eval_rows
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.protocol import Role

CAFE = unicodedata.normalize("NFC", "café")
BOX = "1,2,20,25"
HEADER = "path,x0,y0,x1,y1\n"


def save(image: Image.Image, path: Path, kind: str = "JPEG", **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, kind, **options)


@pytest.fixture
def put(tmp_path, jpeg):
    """`put(path, content)`: a file below in/; without content another JPEG of 40x30 each time."""
    seeds = iter(range(10_000))

    def make(path: str, content: bytes | str | None = None) -> Path:
        place = tmp_path / "in" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        data = jpeg(next(seeds)) if content is None else content
        place.write_bytes(data.encode() if isinstance(data, str) else data)
        return place

    return make


@pytest.fixture
def cats(put, tmp_path):
    """`cats(train=3, held_out=2, names=("ant", "cat"))`: in/ in the folder layout, with a box for each held-out one."""

    def make(train: int = 3, held_out: int = 2, names: tuple[str, ...] = ("ant", "cat")) -> Path:
        ids = [
            f"{role.value}/{name}/{n}.jpg"
            for role in Role
            for name in names
            for n in range(train if role is Role.TRAIN else held_out)
        ]
        for path in ids:
            put(path)
        put("boxes.csv", HEADER + "".join(f"{path},{BOX}\n" for path in ids if not path.startswith("train/")))
        return tmp_path / "in"

    return make


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """`run(*arguments)`: exit code, standard output and standard error of an import of in/ as a folder to out/."""

    def main(*arguments: str, dataset: str = "folder", source: str = "in", out: str = "out"):
        monkeypatch.chdir(tmp_path)
        line = ["import_dataset.py", "--dataset", dataset, "--source", source, "--out", out, *arguments]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as end:
            run_main(job.main)
        return end.value.code, *capsys.readouterr()

    return main


def rows_of(dataset, role: Role) -> dict[str, dict]:
    tables = [pq.read_table(f"{dataset.uri}/{shard.name}") for shard in dataset.manifest.splits[role].shards]
    return {row["id"]: row for table in tables for row in table.to_pylist()}


def pixels(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


HIDDEN = ["train/.ipynb_checkpoints/1-checkpoint.jpg", "train/cat/._0.jpg", "train/cat/Thumbs.db", ".DS_Store"]
HIDDEN += ["val/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/train/cat/._0.jpg"]


def test_what_systems_leave_is_no_class_and_no_image_but_counted(cats, put, run, tmp_path):
    cats()
    for name in HIDDEN:
        put(name, b"\0\5\x16\7")
    code, out, _ = run()
    dataset = open_dataset(str(tmp_path / "out"))
    assert code == 0
    assert dataset.classes == ("ant", "cat")
    assert "taken: train 6 (ant 3, cat 3), val 4 (ant 2, cat 2), test 4 (ant 2, cat 2)" in out
    assert "passed over: 6 hidden files, or files that a system left: .jpg 4, .DS_Store 1, .db 1" in out
    code, out, _ = run("--check")
    assert code == 0
    assert "passed over: 6 hidden files" in out
    assert out.splitlines()[-1] == "What was taken is sound; 6 files or images were not, or not whole (see above)."


@pytest.mark.parametrize("name", ["ilsvrc", "voc", "coco", "cub", "wsolevaluation", "tinyimagenet"])
def test_hidden_files_beside_the_images_of_every_layout(layouts, tmp_path, name):
    read = layouts(name, tmp_path)
    rows = list(read().rows)
    beside = next(row.image for row in rows if row.role is Role.TRAIN).parent
    (beside / ".ipynb_checkpoints").mkdir()
    (beside / ".ipynb_checkpoints/1.jpg").write_bytes(b"1")
    (beside / "._2.jpg").write_bytes(b"2")
    if name == "voc":
        (tmp_path / "ImageSets/Main/._cat_train.txt").write_bytes(b"3")
    if name == "ilsvrc":
        (beside.parent / ".ipynb_checkpoints").mkdir()
        (beside.parent / ".ipynb_checkpoints/3.png").write_bytes(b"3")
        (tmp_path / "LOC_synset_mapping.txt").unlink()
    source = read()
    assert [row.id for row in source.rows] == [row.id for row in rows]
    (endings,) = examine(source)[1].passed_over.values()
    assert endings == {".jpg": 2} | ({".png": 1} if name == "ilsvrc" else {})


def test_a_zip_of_the_finder_is_its_one_folder(cats, run, tmp_path):
    root = cats()
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for path in sorted(root.rglob("*.*")):
            archive.write(path, path.relative_to(tmp_path).as_posix())
            archive.writestr(f"__MACOSX/{path.relative_to(tmp_path).parent}/._{path.name}", b"\0\5\x16\7")
    code, out, err = run(source="in.zip")
    assert (code, err) == (0, "")
    assert "train 6, val 4, test 4; 0 rows left out" in out
    assert "passed over: 15 hidden files" in out


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
@pytest.mark.parametrize("name", ["folder", "wsolevaluation", "cub", "tinyimagenet", "ilsvrc", "voc", "coco"])
def test_text_files_as_windows_writes_them(layouts, tmp_path, name, mark, end):
    read = layouts(name, tmp_path)
    plain = list(read().rows)
    for path in tmp_path.rglob("*"):
        if path.suffix in (".txt", ".csv", ".xml", ".json"):
            path.write_bytes(mark + path.read_text().replace("\n", end).encode())
    assert list(read().rows) == plain


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_name_is_the_same_in_every_unicode_form(cats, told, write, tmp_path, form):
    """The folder as macOS' old disks spell it, the table as Windows does; or the other way round."""
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    root = cats(names=(unicodedata.normalize(form, CAFE), "cat"))
    table = root / "boxes.csv"
    table.write_text(unicodedata.normalize(other, table.read_text()))
    source = folder.read(root, folder.Options())
    assert told(source) == ""
    dataset = write(tmp_path / "out", source)
    assert dataset.classes == (CAFE, "cat")
    assert f"val/{CAFE}/0.jpg" in dataset.val.ids


def test_lists_find_files_in_every_unicode_form(layouts, tmp_path, told):
    read = layouts("voc", tmp_path)
    for path in (*tmp_path.rglob("2007_000005.*"),):
        path.rename(path.with_stem(unicodedata.normalize("NFD", CAFE)))
    listed = tmp_path / "ImageSets/Main/val.txt"
    listed.write_text(listed.read_text().replace("2007_000005", CAFE))
    assert told(read()) == ""


def test_images_of_other_kinds_are_read(cats, put, run, tmp_path):
    root = cats()
    image = Image.open(root / "train/cat/0.jpg")
    shutil.copy(root / "train/cat/0.jpg", put("train/cat/a.jfif", b"").parent / "a.JFIF")
    (root / "train/cat/a.jfif").unlink()
    put("train/cat/b.jpe")
    save(image, root / "train/cat/c.webp", "WEBP", lossless=True)
    save(image, root / "train/cat/d.BMP", "BMP")
    assert run()[0] == 0
    stored = rows_of(open_dataset(str(tmp_path / "out")), Role.TRAIN)
    assert {f"train/cat/{name}" for name in ("a.JFIF", "b.jpe", "c.webp", "d.BMP")} < stored.keys()
    for name in ("c.webp", "d.BMP"):
        assert stored[f"train/cat/{name}"]["image"].startswith(b"\x89PNG")
        np.testing.assert_array_equal(pixels(stored[f"train/cat/{name}"]["image"]), np.array(image))
    assert stored["train/cat/b.jpe"]["image"] == (root / "train/cat/b.jpe").read_bytes()


def test_what_is_not_read_is_counted_by_reason_and_ending(cats, put, run):
    cats()
    for name in ("train/cat/a.gif", "train/cat/b.TIFF", "val/ant/c.heic", "train/cat/notes.txt", "train/lost.jpg"):
        put(name)
    counts = [
        "passed over: 3 pictures of a kind that is not read (JPEG, PNG, WebP and BMP are): .gif 1, .heic 1, .tiff 1",
        "passed over: 1 files that are no images: .txt 1",
        "passed over: 1 image files that no split has: .jpg 1",
    ]
    for arguments in ([], [], ["--check"]):  # an import, a finished one, a look
        code, out, _ = run(*arguments)
        assert code == 0
        assert set(counts) <= set(out.splitlines())
    assert "No problem" not in out
    assert "in/train/lost.jpg" in out


def test_names_that_cannot_be_printed_are_counted_in_signs_that_can(cats, put, run):
    root = cats()
    put("train/cat/a.\x1b[31m", b"")
    (root / os.fsdecode(b"train/cat/b.\xff")).write_bytes(b"")
    code, out, _ = run()
    assert code == 0
    assert r"passed over: 2 files that are no images: '.\udcff' 1, '.\x1b[31m' 1" in out
    assert all(line.isprintable() for line in out.splitlines())


def test_boxes_that_are_shares_of_the_image(cats, run, told):
    root = cats()
    table = root / "boxes.csv"
    table.write_text(table.read_text().replace(BOX, "0.1,0.2,0.5,1.0"))
    assert "shares of the image? This layout wants pixels" in run()[2]
    code, out, _ = run("--check")
    assert code == 3
    assert "shares of the image? This layout wants pixels" in out
    table.write_text(table.read_text().replace("0.1,0.2,0.5,1.0", BOX, 1))
    assert run("--check")[0] == 0  # one box of a pixel or two is none of a set of shares


@pytest.mark.parametrize(
    ("convention", "box", "reason"),
    [
        ("exclusive0", (5.0, 5.0, 5.0, 9.0), "has no area: (x1, y1) is the first pixel outside"),
        ("exclusive0", (5.0, 5.0, 9.0, 5.0), "has no area"),
        ("exclusive0", (0.0, 0.0, 40.0, 30.0), ""),
        ("inclusive0", (5.0, 5.0, 5.0, 5.0), ""),
        ("inclusive0", (39.0, 29.0, 39.0, 29.0), ""),
        ("inclusive0", (40.0, 5.0, 40.0, 9.0), "is not on the image of 40x30"),
        ("inclusive1", (1.0, 1.0, 40.0, 30.0), ""),
        ("inclusive1", (40.0, 30.0, 40.0, 30.0), ""),
        ("inclusive1", (0.0, 1.0, 9.0, 9.0), "whose first pixel is 1 (inclusive1): see --convention"),
        ("inclusive1", (1.0, 0.5, 9.0, 9.0), "whose first pixel is 1 (inclusive1)"),
    ],
)
def test_a_box_has_a_pixel_on_the_image_under_its_convention(make_source, told, convention, box, reason):
    """The first image of val is 40x30."""
    source = make_source(train=9, val=4, test=3)
    rows = [replace(row, boxes=(box,), box_labels=(0,)) if row.id == "val-0000" else row for row in source.rows]
    whole = [
        replace(row, boxes=((1.0, 2.0, 20.0, 25.0),), box_labels=row.labels) for row in rows if row.id != "val-0000"
    ]
    row = next(row for row in rows if row.id == "val-0000")
    found = told(replace(source, rows=[*whole, row], box_convention=convention))
    assert (reason in found) if reason else not found


def mask_of(size: tuple[int, int]) -> bytes:
    sink = io.BytesIO()
    mask = Image.new("L", size)
    mask.paste(255, (1, 1, 9, 9))
    mask.save(sink, "PNG")
    return sink.getvalue()


@pytest.mark.parametrize("column", ["masks", "ignore"])
@pytest.mark.parametrize(
    ("size", "scaled", "passes"),
    [
        ((40, 30), False, True),
        ((80, 60), False, False),
        ((30, 40), False, False),
        ((80, 60), True, True),
        ((20, 15), True, True),
        ((27, 20), True, True),  # 40x30 by two thirds is 26.7x20
        ((53, 40), True, True),  # by four thirds 53.3x40
        ((57, 40), True, False),
        ((30, 40), True, False),
        ((40, 31), True, True),  # a pixel, as rounding leaves it
        ((40, 33), True, False),
    ],
)
def test_masks_have_the_size_or_where_published_so_the_shape_of_their_image(
    make_source, tmp_path, told, column, size, scaled, passes
):
    """The first image of val is 40x30."""
    path = tmp_path / "mask.png"
    path.write_bytes(mask_of(size))
    given = {"masks": (path,)} if column == "masks" else {"masks": (mask_of((40, 30)),), "ignore": path}
    source = make_source(train=9, val=4, test=3)
    rows = [replace(row, **given) if row.id == "val-0000" else row for row in source.rows]
    found = told(replace(source, rows=rows, scaled_masks=scaled))
    assert found == ("" if passes else f"val-0000: image is 40x30 but its mask is {size[0]}x{size[1]}")


def test_masks_of_another_size_are_wsolevaluations(layouts, tmp_path):
    assert layouts("wsolevaluation", tmp_path / "a")().scaled_masks
    assert not layouts("folder", tmp_path / "b")().scaled_masks


@pytest.mark.parametrize("name", ["train/cat", "val/ant/more"])
def test_a_link_to_a_folder_is_named(cats, run, tmp_path, name):
    link = cats() / name
    elsewhere = tmp_path / "disk"
    if link.exists():
        shutil.move(link, elsewhere)
    else:
        elsewhere.mkdir()
    link.symlink_to(elsewhere)
    code, _, err = run()
    assert code == 3
    assert f"{link} is a link to the folder {elsewhere}, and links are not followed" in err


def test_a_linked_source_is_read(cats, run, tmp_path):
    (tmp_path / "link").symlink_to(cats())
    assert run(source="link")[0] == 0


def sideways(turn: int) -> tuple[Image.Image, Image.Exif]:
    """A picture of 40x30, red in its left upper quarter, as a camera stores it that leaves the turning to EXIF."""
    upright = Image.new("RGB", (40, 30), (20, 90, 20))
    upright.paste((200, 30, 30), (0, 0, 20, 15))
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[turn]
    exif = Image.Exif()
    exif[0x0112] = turn
    return upright.transpose(back), exif


def is_red(image: np.ndarray, x: int, y: int) -> bool:
    return bool(image[y, x, 0] > 120)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("turn", [3, 6, 8])
@pytest.mark.parametrize("exif", ["upright", "stored"])
def test_a_photograph_its_box_and_its_mask_share_a_frame(cats, run, tmp_path, kind, turn, exif):
    root = cats()
    image, tags = sideways(turn)
    for name in ("train/cat/1.jpg", "val/cat/1.jpg"):
        save(image, root / name, kind, exif=tags.tobytes())
    size = (40, 30) if exif == "upright" else image.size
    (root / "masks/val/cat").mkdir(parents=True)
    (root / "masks/val/cat/1.png").write_bytes(mask_of(size))
    code, out, err = run("--exif", exif)
    assert (code, err) == (0, "")
    what = {"upright": "turned upright, as their", "stored": "left as stored, although their"}[exif]
    assert f"note: 2 images {what} EXIF orientation" in out
    dataset = open_dataset(str(tmp_path / "out"))
    for row in (rows_of(dataset, Role.TRAIN)["train/cat/1.jpg"], rows_of(dataset, Role.VAL)["val/cat/1.jpg"]):
        stored = pixels(row["image"])  # decoded without a turn, as every later stage does
        assert (row["width"], row["height"]) == stored.shape[1::-1] == size
        if exif == "upright":
            assert [is_red(stored, x, y) for x, y in ((5, 5), (30, 5), (5, 25), (30, 25))] == [
                True,
                False,
                False,
                False,
            ]
            assert Image.open(io.BytesIO(row["image"])).getexif().get(0x0112) is None
        elif kind != "WEBP":
            assert np.array_equal(stored, pixels((root / "train/cat/1.jpg").read_bytes()))
        as_shown, asked = photograph(row["image"])  # by what heeds EXIF: localize, overlays, a labelling tool
        assert asked == 1
        assert np.array_equal(as_shown.permute(1, 2, 0), stored)
    _, out, _ = run("--check", "--exif", exif)
    assert f"note: 2 images {what} EXIF orientation" in out
    assert "  val/cat/1.jpg" in out


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_what_asks_to_be_turned_goes_and_all_else_stays(kind):
    image, tags = sideways(6)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    sink = io.BytesIO()
    image.save(sink, kind, exif=tags.tobytes(), icc_profile=profile)
    data = sink.getvalue()
    plain = without_orientation(data, kind)
    assert (orientation(data), orientation(plain)) == (6, 1)
    assert Image.open(io.BytesIO(plain)).info["icc_profile"] == profile
    assert np.array_equal(pixels(plain), pixels(data))
    assert without_orientation(plain, kind) == plain
    if kind == "JPEG":  # as a viewer reads XMP where EXIF says nothing
        xmp = b"http://ns.adobe.com/xap/1.0/\x00<x tiff:Orientation='6'/>"
        with_xmp = plain[:2] + b"\xff\xe1" + (2 + len(xmp)).to_bytes(2) + xmp + plain[2:]
        assert without_orientation(with_xmp, kind) == plain
        filled = data[:2] + b"\xff\xff" + data[2:]  # any number of such bytes may stand before a segment
        assert (orientation(filled), without_orientation(filled, kind)) == (6, plain)


def test_a_box_that_is_off_the_turned_image_says_so(cats, run):
    root = cats()
    image, tags = sideways(6)
    save(image, root / "val/cat/1.jpg", exif=tags.tobytes())  # stored as 30x40, upright 40x30
    table = root / "boxes.csv"
    table.write_text(table.read_text().replace(f"val/cat/1.jpg,{BOX}", "val/cat/1.jpg,1,2,20,39"))
    _, out, _ = run("--check")
    assert "is not on the image of 40x30 (the image turned upright, as its EXIF orientation says)" in out
    assert run("--check", "--exif", "stored")[0] == 0


@pytest.mark.parametrize(
    ("size", "what"),
    [((40, 30), "images turned upright"), ((30, 40), "images left as stored"), ((41, 30), None)],
    ids=["upright", "stored", "neither"],
)
@pytest.mark.parametrize("name", ["coco", "voc"])
def test_the_size_in_an_annotation_decides_on_the_frame(layouts, tmp_path, told, name, size, what):
    """The image is stored as 30x40, and EXIF asks for 40x30."""
    read = layouts(name, tmp_path)
    row = next(row for row in read().rows if row.role is Role.TEST)
    image, tags = sideways(6)
    save(image, row.image, exif=tags.tobytes())
    if name == "coco":
        file, old = tmp_path / "annotations/instances_test.json", '"width": 40, "height": 30'
        new = f'"width": {size[0]}, "height": {size[1]}'
    else:
        file, old = tmp_path / f"Annotations/{row.id}.xml", "<width>40</width><height>30</height>"
        new = f"<width>{size[0]}</width><height>{size[1]}</height>"
    file.write_text(file.read_text().replace(old, new, 1))
    findings, _ = examine(read())
    if what is None:
        assert f"{row.id}: image is 30x40 but its annotation is for 41x30" in told(read())
    else:
        assert [finding.items for finding in findings if finding.what.startswith(what)] == [(row.id,)]


@pytest.mark.parametrize("name", ["wsolevaluation", "ilsvrc", "cub", "tinyimagenet"])
def test_benchmarks_are_in_stored_pixels(layouts, tmp_path, name):
    read = layouts(name, tmp_path)
    row = next(row for row in read().rows if row.role is Role.TEST)
    image, tags = sideways(3)
    save(image, row.image, exif=tags.tobytes())
    findings, _ = examine(read())
    assert [finding.items for finding in findings if finding.what.startswith("images left as stored")] == [(row.id,)]


@pytest.fixture
def own(put, tmp_path):
    """in/ without splits: ten images of ant and twenty of cat, all with boxes."""
    ids = [f"{name}/{n}.jpg" for name, count in (("ant", 10), ("cat", 20)) for n in range(count)]
    for path in ids:
        put(path)
    put("boxes.csv", HEADER + "".join(f"{path},{BOX}\n" for path in ids))
    return tmp_path / "in"


def held_out(root: Path, **options) -> dict[Role, set[str]]:
    rows = list(folder.read(root, folder.Options(**options)).rows)
    return {role: {row.id for row in rows if row.role is role} for role in Role}


def test_splits_are_drawn_alike_of_each_class_and_again_the_same(own, run, tmp_path):
    drawn = held_out(own, val_share=0.3, test_share=0.2)
    counts = {role: sorted(name.split("/")[0] for name in names) for role, names in drawn.items()}
    assert counts == {
        Role.TRAIN: ["ant"] * 5 + ["cat"] * 10,
        Role.VAL: ["ant"] * 3 + ["cat"] * 6,
        Role.TEST: ["ant"] * 2 + ["cat"] * 4,
    }
    assert held_out(own, val_share=0.3, test_share=0.2) == drawn
    assert held_out(own, val_share=0.3, test_share=0.2, seed=1) != drawn
    assert run("--val-share", "0.3", "--test-share", "0.2")[0] == 0
    dataset = open_dataset(str(tmp_path / "out"))
    assert set(dataset.val.ids) == drawn[Role.VAL]
    options = dataset.manifest.source["options"]
    assert (options["val_share"], options["test_share"], options["seed"]) == (0.3, 0.2, 0)


def test_images_without_a_box_are_not_drawn_where_others_have_one(own):
    table = own / "boxes.csv"
    table.write_text("".join(line for line in table.read_text().splitlines(True) if "/1" not in line))
    boxed = {row.id for row in folder.read(own, folder.Options()).rows if row.boxes}
    drawn = held_out(own)
    assert len(boxed) == 18
    assert drawn[Role.VAL] | drawn[Role.TEST] < boxed


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.0, 0.2), (0.2, 0.0), (-0.1, 0.2)])
def test_shares_leave_something_for_each_split(shares):
    with pytest.raises(UsageError, match="--val-share and --test-share"):
        folder.Options(val_share=shares[0], test_share=shares[1])


@pytest.mark.parametrize("name", ["Train", "validation", "test"])
def test_folders_of_splits_are_no_classes(own, name):
    (own / name).mkdir()
    with pytest.raises(DataError, match=f"neither train/<class>/.*it has .*{name}"):
        folder.read(own, folder.Options())


def test_all_faults_are_told_at_once(cats, put, run, tmp_path, jpeg):
    root = cats(train=6)
    put("train/cat/0.jpg", jpeg(999)[:-100])
    put("train/cat/1.jpg", b"")
    put("val/cta/9.jpg")
    put("masks/val/cat/8.png", mask_of((40, 30)))
    put("masks/val/cat/0.png", mask_of((30, 40)))
    with (root / "boxes.csv").open("a") as table:
        table.write("val/cat/1.jpg,1,2,x,4\nval/cat/7.jpg,1,2,3,4\nval/ant/1.jpg,1,2,99,4\n")
    code, out, err = run()
    assert code == 3
    assert len(err.splitlines()) == 1
    for told in (
        "a box is four numbers",
        "boxes of 'val/cat/7.jpg', which is not an image",
        "masks/val/cat/8.png is a mask of no image",
        "train/cat/0.jpg: image cannot be decoded",
        "train/cat/1.jpg: image is not a readable",
        "val/cta/9.jpg: Unknown class in val/ 'cta'. Did you mean 'cat'",
        "val/cat/0.jpg: image is 40x30 but its mask is 30x40",
        "val/ant/1.jpg: box (1.0, 2.0, 99.0, 4.0) is not on the image",
    ):
        assert out.count(told) == 1, told
    assert not (tmp_path / "out/manifest.json").exists()
    assert "nothing was taken; no fault was found in: train 10 (ant 6, cat 4), val 2 (ant 1, cat 1), test 4" in out
    assert "passed over: 1 image files that no split has: .png 1" in out


def test_a_table_with_many_wrong_lines_is_told_whole(cats, run, tmp_path):
    root = cats()
    with (root / "boxes.csv").open("a") as table:
        table.write("val/cat/1.jpg,1,2,x,4\n" * 60)
    code, out, err = run()
    assert (code, "... and 50 more (--list-all names them)" in out) == (3, True)
    assert f"All that were found are in {tmp_path / 'out/quarantine.json'}." in err
    kept = json.loads((tmp_path / "out/quarantine.json").read_bytes())
    assert [row["reason"].split()[-6] for row in kept] == [f"{number}:" for number in range(10, 70)]
    for asked in ([], ["--check"]):
        _, out, _ = run(*asked, "--list-all")
        assert out.count("a box is four numbers") == 60


@pytest.mark.parametrize(
    ("rewrite", "told"),
    [
        (lambda text: text.replace(",", ";").encode(), "with ';' between its columns: save it with commas"),
        (lambda text: text.replace(",", "\t").encode(), r"with '\t' between its columns"),
        (lambda text: text.replace("path,x0", "file,left").encode(), "but begins with 'file,left,y0,x1,y1'."),
        (lambda text: text.partition("\n")[2].encode(), f"but begins with 'val/ant/0.jpg,{BOX}'."),
        (lambda text: text.replace(",", "  ").encode(), "but begins with 'path  x0  y0  x1  y1'."),
        (lambda text: text.replace("cat/1", "café/1").encode("latin1"), "boxes.csv: 'utf-8' codec can't decode"),
        (lambda text: (text + 'val/cat/1.jpg,1,2,3,"' + "4" * 140_000).encode(), "field larger than field limit"),
    ],
    ids=["semicolons", "tabs", "names", "none", "blanks", "latin1", "quote"],
)
def test_a_table_of_another_form_hides_no_other_fault_and_makes_none(cats, put, run, rewrite, told):
    table = cats() / "boxes.csv"
    table.write_bytes(rewrite(table.read_text()))
    put("train/cat/0.jpg", b"none")
    code, out, _ = run()
    assert code == 3
    assert [line for line in out.splitlines() if line.startswith("problem: ")] == [
        "problem: 1 faults beside single images",
        "problem: 1 images cannot be decoded",
    ]
    assert told in out
    assert "train/cat/0.jpg: image is not a readable" in out


@pytest.mark.parametrize("asked", [[], ["--check"]])
def test_what_lies_in_a_folder_that_is_of_no_layout_is_counted(put, run, tmp_path, asked):
    for name in ("a.jpg", "b.JPG", "notes.txt", ".hidden"):
        put(name)
    code, out, _ = run(*asked, dataset="cub")
    assert (code, out) == (3, f"nothing was taken; {tmp_path / 'in'} holds 3 files (.jpg 2, .txt 1)\n")


def test_a_part_of_an_annotation_that_vanished_is_a_word_at_the_end(layouts, tmp_path, run):
    layouts("coco", tmp_path / "in")
    file = tmp_path / "in/annotations/instances_test.json"
    file.write_text(file.read_text().replace('"bbox": [1, 2, 19, 23]', '"bbox": [30, 2, 19, 23]', 1))
    code, out, _ = run("--check", "--train", "train", "--val", "val", "--test", "test", dataset="coco")
    assert "note: 1 images with boxes or polygons that were cut off at the edge of the image" in out
    last = "What was taken is sound; 1 files or images were not, or not whole (see above)."
    assert (code, out.splitlines()[-1]) == (0, last)


def test_own_photographs_in_the_layout_of_coco_get_the_recipe_for_photographs(layouts, tmp_path, run):
    layouts("coco", tmp_path / "in")
    code, out, _ = run("--train", "train", "--val", "val", "--test", "test", dataset="coco")
    assert (code, out.splitlines()[-1].endswith("--data out --weights imagenet")) == (0, True)


def test_too_many_bad_images_are_all_told(cats, put, run, tmp_path):
    cats()
    for name in ("train/ant/0.jpg", "val/cat/0.jpg", "test/cat/1.jpg"):
        put(name, b"none")
    code, out, err = run()
    assert code == 3
    assert "3 of 14 rows are bad, and 2 pass without --max-bad" in err
    assert all(f"{name}: image is not a readable" in out for name in ("train/ant/0.jpg", "test/cat/1.jpg"))
    assert len(json.loads((tmp_path / "out/quarantine.json").read_bytes())) == 3
    assert "nothing was taken; no fault was found in: train 5 (ant 2, cat 3), val 3 (ant 2, cat 1), test 3" in out


def test_one_bad_file_among_your_own_is_a_warning(cats, put, run, layouts, tmp_path, write):
    cats()
    put("train/cat/1.jpg", b"none")
    code, out, _ = run()
    assert code == 0
    assert "left out: 1 images cannot be decoded" in out
    assert "train/cat/1.jpg: image is not a readable" in out
    assert "; 1 rows left out" in out
    read = layouts("cub", tmp_path / "cub")
    (tmp_path / "cub/images/001.a/0.jpg").write_bytes(b"none")
    with pytest.raises(DataError, match="1 of 8 rows are bad, and 0 pass without --max-bad"):
        write(tmp_path / "of cub", read(), max_bad=None)


def test_the_check_agrees_with_the_import_on_how_many_may_be_bad(cats, put, run):
    cats()
    put("train/cat/1.jpg", b"none")
    code, out, _ = run("--check")
    assert (code, "left out: 1 images cannot be decoded" in out) == (0, True)
    assert out.splitlines()[-1] == "An import would leave out 1 images, as --max-bad allows."
    for name in ("val/cat/0.jpg", "test/cat/1.jpg", "test/ant/1.jpg"):
        put(name, b"none")
    code, out, _ = run("--check")
    assert (code, out.splitlines()[-1]) == (3, "4 problems")
    assert run()[0] == 3
    assert run("--check", "--max-bad", "0.3")[0] == run("--max-bad", "0.3")[0] == 0


@pytest.mark.parametrize("asked", [[], ["--check"]])
def test_a_class_that_few_bad_images_leave_empty_is_refused(cats, put, run, asked):
    cats(train=1)
    put("train/cat/0.jpg", b"none")
    code, out, _ = run(*asked)
    assert code == 3
    assert "problem: 1 classes have no training image\n  cat\n" in out


@pytest.mark.parametrize(("rows", "allowed"), [(20, 2), (200, 2), (1000, 10)])
def test_how_many_of_your_own_may_be_bad(make_source, rows, allowed):
    source = make_source(train=9, val=4, test=3)
    assert findings.allowed(replace(source, benchmark=False), None, rows) == allowed
    assert findings.allowed(source, None, rows) == 0.001 * rows
    assert findings.allowed(source, 0.5, rows) == 0.5 * rows


def test_labels_alone_make_a_dataset(cats, run, tmp_path):
    root = cats()
    (root / "boxes.csv").unlink()
    code, _, err = run()
    assert code == 3
    assert "neither a box nor a mask to be evaluated with (--boxes none imports images and labels alone, " in err
    code, out, _ = run("--boxes", "none", out="alone")
    assert code == 0
    assert "val and test have labels alone (--boxes none)" in out
    assert out.splitlines()[-1].endswith("--select-by evidence")
    dataset = open_dataset(str(tmp_path / "alone"))
    assert not dataset.is_located
    assert dataset.manifest.source["boxes"] == "none"
    assert len(dataset.val.ids) == len(dataset.test().ids) == 4
    assert dataset.train.labels.tolist().count(1) == 3
    assert all(row["boxes"] == [] and row["mask"] is None for row in rows_of(dataset, Role.VAL).values())
    read = ReadConfig(image_size=30, resize_size=30, mode="streaming")
    (batch,) = eval_rows(dataset.val, read, "resize", 8).batches()
    assert batch.labels_B.tolist() == [0, 0, 1, 1]
    assert [len(boxes) for boxes in batch.boxes] == [0] * 4
    assert batch.masks is None
    assert run("--boxes", "none", "--check")[0] == 0


def test_boxes_stay_behind_if_none_are_wanted(cats, run, tmp_path):
    root = cats()
    assert run()[0] == 0
    assert open_dataset(str(tmp_path / "out")).is_located
    code, _, err = run("--boxes", "none")
    assert (code, "holds another dataset" in err) == (2, True)
    (root / "boxes.csv").write_text(HEADER + f"val/cat/0.jpg,{BOX}\n")
    assert run("--boxes", "none", out="alone")[0] == 0
    alone = open_dataset(str(tmp_path / "alone"))
    assert all(row["boxes"] == [] for row in rows_of(alone, Role.VAL).values())


def test_boxes_of_test_alone_make_a_dataset(cats, run, tmp_path):
    root = cats()
    lines = (root / "boxes.csv").read_text().splitlines(keepends=True)
    (root / "boxes.csv").write_text("".join(line for line in lines if not line.startswith("val/")))
    assert run()[0] == 3
    code, out, _ = run("--boxes", "test", out="judged")
    assert code == 0
    assert "note: val has labels alone (--boxes test)" in out
    assert "is measured on test alone" in out
    assert out.splitlines()[-1].endswith("--select-by evidence")
    dataset = open_dataset(str(tmp_path / "judged"))
    assert [dataset.manifest.splits[role].boxes for role in (Role.VAL, Role.TEST)] == [0, 4]
    (root / "boxes.csv").write_text(lines[0])
    assert run("--boxes", "test", out="none")[0] == 3


@pytest.mark.parametrize("name", ["wsolevaluation", "voc", "coco", "cub"])
def test_labels_alone_of_other_layouts(layouts, write, tmp_path, name):
    read = layouts(name, tmp_path / "in")
    for path in (tmp_path / "in").rglob("localization.txt"):
        path.unlink()
    dataset = write(tmp_path / "out", replace(read(), located=()))
    assert not dataset.is_located
    assert dataset.val.num_rows == 2


def test_splits_of_labels_alone_are_drawn_of_all_images(own, run, tmp_path):
    (own / "boxes.csv").unlink()
    assert run("--boxes", "none")[0] == 0
    dataset = open_dataset(str(tmp_path / "out"))
    assert [split.rows for split in dataset.manifest.splits.values()] == [18, 6, 6]


@pytest.mark.parametrize("out", ["my cats & dogs", "100%25", "r#1", "q?x=1", "läufe", "[red]$HOME"])
def test_odd_places_are_written_to_and_the_next_command_can_be_pasted(cats, run, tmp_path, out):
    cats()
    code, told, _ = run(out=out)
    assert code == 0
    assert f"tune_bas.py --data {shlex.quote(out)} --weights" in told.splitlines()[-1]
    assert open_dataset(str(tmp_path / out)).val.num_rows == 4
    assert {path.name for path in tmp_path.iterdir()} == {"in", out}


def test_help_of_your_own_images_has_an_example(capsys):
    with pytest.raises(SystemExit):
        job.parse(["--dataset", "folder", "--help"])
    text = capsys.readouterr().out
    for line in ("path,x0,y0,x1,y1", "val/cat/tom.jpg,12,30,118,96", "masks/<path of the image>.png", "--val-share"):
        assert line in text


def test_the_example_of_the_help_is_a_table_that_is_read(tmp_path, put):
    lines = [line.strip() for line in folder.__doc__.splitlines()]
    table = lines[lines.index("path,x0,y0,x1,y1") :]
    for name in ("train/cat/a.jpg", "train/dog/a.jpg"):
        put(name)
    for name, size in (("val/cat/tom.jpg", (200, 96)), ("test/dog/rex.jpg", (64, 48))):
        save(Image.new("RGB", size), tmp_path / "in" / name)
    put("boxes.csv", "\n".join(table[: table.index("")]) + "\n")
    findings, _ = examine(folder.read(tmp_path / "in", folder.Options()))
    assert findings == []


def ascii_terminal(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and output of an import where Python knows no sign but those of ASCII."""
    plain = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, job.__file__, "--dataset", "folder", *arguments]
    ended = subprocess.run(command, cwd=tmp_path, env=os.environ | plain, capture_output=True, text=True)
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_locale_of_ascii_reads_names_and_prints_what_it_can(cats, tmp_path, form):
    cats(names=("ant", unicodedata.normalize(form, CAFE)))
    code, told = ascii_terminal(tmp_path, "--source", "in", "--out", "out")
    assert code == 0, told
    assert r"caf\xe9 3" in told
    assert open_dataset(str(tmp_path / "out")).manifest.classes == ("ant", CAFE)


def test_help_on_an_ascii_terminal(tmp_path):
    code, told = ascii_terminal(tmp_path, "--help")
    assert (code, r"\u" in told, "--val-share" in told) == (0, False, True)
