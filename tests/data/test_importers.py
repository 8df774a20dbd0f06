"""Every importer on a small faithful copy of its layout."""

import io
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsol_pipeline.data.importers import (
    Count,
    cub,
    folder,
    ilsvrc,
    importer,
    names,
    synthetic,
    tinyimagenet,
    wsolevaluation,
)
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.protocol import Role

TENCH, SPRINGER = "n01440764", "n02102040"
XML = """<annotation><size><width>40</width><height>30</height><depth>3</depth></size>{}</annotation>"""
OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
BOXES = {  # name -> wnid and boxes, as the official files have them
    "ILSVRC2012_val_00000001": (TENCH, [(3, 4, 20, 29), (0, 0, 39, 29)]),
    "ILSVRC2012_val_00000002": (SPRINGER, [(5, 6, 7, 8)]),
    "ILSVRC2012_val_00000003": (TENCH, [(1, 1, 2, 2)]),
    "ILSVRC2012_val_00000004": (SPRINGER, [(2, 2, 3, 3)]),
}
VAL = ["ILSVRC2012_val_00000001", "ILSVRC2012_val_00000004"]


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def imagenet(tmp_path, jpeg):
    """Two classes with two training images each, four validation images with XML boxes and split lists."""
    data = tmp_path / "Data/CLS-LOC"
    for wnid in (SPRINGER, TENCH):
        for number in (7, 8):
            put(data / f"train/{wnid}/{wnid}_{number}.JPEG", jpeg(number))
    for number, (name, (wnid, boxes)) in enumerate(BOXES.items()):
        put(data / f"val/{name}.JPEG", jpeg(10 + number))
        objects = "".join(OBJECT.format(wnid, *box) for box in boxes)
        put(tmp_path / f"Annotations/CLS-LOC/val/{name}.xml", XML.format(objects))
    put(tmp_path / "LOC_synset_mapping.txt", f"{TENCH} tench, Tinca tinca\n{SPRINGER} English springer\n")
    put(tmp_path / "splits/val.txt", "\n".join(VAL))
    put(tmp_path / "splits/test.txt", "\n".join(sorted(BOXES.keys() - set(VAL))))
    return tmp_path


@pytest.fixture
def metadata(imagenet):
    """The same dataset in the text files of wsolevaluation."""
    train = [f"train/{wnid}/{wnid}_{number}.JPEG" for wnid in (TENCH, SPRINGER) for number in (7, 8)]
    held_out = {"val": VAL, "test": sorted(BOXES.keys() - set(VAL))}
    members = {"train": train} | {role: [f"val/{name}.JPEG" for name in listed] for role, listed in held_out.items()}
    for role, ids in members.items():
        label = {name: int(SPRINGER in name or BOXES.get(Path(name).stem, "?")[0] == SPRINGER) for name in ids}
        put(imagenet / f"lists/{role}/image_ids.txt", "\n".join(ids))
        put(imagenet / f"lists/{role}/class_labels.txt", "\n".join(f"{name},{label[name]}" for name in ids))
        put(imagenet / f"lists/{role}/image_sizes.txt", "\n".join(f"{name},40,30" for name in ids))
        lines = [f"{name},{','.join(map(str, box))}" for name in ids for box in BOXES.get(Path(name).stem, ("", []))[1]]
        put(imagenet / f"lists/{role}/localization.txt", "\n".join(lines))
    return wsolevaluation.Options(metadata="lists", images="Data/CLS-LOC")


def by_id(source, role=None):
    return {row.id: row for row in source.rows if role in (None, row.role)}


def test_ilsvrc(imagenet):
    source = ilsvrc.read(imagenet, ilsvrc.Options())
    rows = by_id(source)
    assert source.classes == (f"{TENCH} tench, Tinca tinca", f"{SPRINGER} English springer")
    assert source.box_convention == "inclusive0"
    assert rows[f"train/{SPRINGER}/{SPRINGER}_7.JPEG"].labels == (1,)
    assert rows[f"train/{SPRINGER}/{SPRINGER}_7.JPEG"].boxes == ()
    first = rows["val/ILSVRC2012_val_00000001.JPEG"]
    assert first.role is Role.VAL
    assert first.boxes == ((3, 4, 20, 29), (0, 0, 39, 29))  # unchanged
    assert first.box_labels == (0, 0)
    assert first.size == (40, 30)
    assert rows["val/ILSVRC2012_val_00000002.JPEG"].role is Role.TEST


def test_ilsvrc_training_list_is_followed(imagenet):
    put(imagenet / "ImageSets/CLS-LOC/train_cls.txt", f"{TENCH}/{TENCH}_8 1\n")
    assert list(by_id(ilsvrc.read(imagenet, ilsvrc.Options()), Role.TRAIN)) == [f"train/{TENCH}/{TENCH}_8.JPEG"]


def test_ilsvrc_csv_stands_in_for_xml(imagenet):
    from_xml = by_id(ilsvrc.read(imagenet, ilsvrc.Options()))
    lines = [
        f"{name},{' '.join(f'{wnid} ' + ' '.join(map(str, box)) for box in boxes)} "
        for name, (wnid, boxes) in BOXES.items()
    ]
    put(imagenet / "LOC_val_solution.csv", "ImageId,PredictionString\n" + "\n".join(lines))
    (imagenet / "Annotations").rename(imagenet / "Gone")
    from_csv = by_id(ilsvrc.read(imagenet, ilsvrc.Options()))
    assert {name: (row.boxes, row.labels) for name, row in from_csv.items()} == {
        name: (row.boxes, row.labels) for name, row in from_xml.items()
    }


def test_ilsvrc_divides_the_official_validation_by_class_if_no_list_does(imagenet):
    (imagenet / "splits/val.txt").unlink()
    divided = by_id(ilsvrc.read(imagenet, ilsvrc.Options(val_per_class=1)))
    again = by_id(ilsvrc.read(imagenet, ilsvrc.Options(val_per_class=1)))
    assert divided == again
    val = [row for row in divided.values() if row.role is Role.VAL]
    assert sorted(row.labels[0] for row in val) == [0, 1]
    assert sum(row.role is Role.TEST for row in divided.values()) == 2


@pytest.mark.parametrize(
    ("options", "val", "test"),
    [
        (ilsvrc.Options(val_per_class=20), Count(20_000, (20, 20)), Count(30_000, (30, 30))),
        (ilsvrc.Options(imagenetv2="v2", imagenetv2_metadata="l"), Count(10_000, (10, 10)), Count(50_000, (50, 50))),
    ],
)
def test_ilsvrc_counts_of_the_whole(tmp_path, options, val, test):
    counts = ilsvrc.published(tmp_path, 1000, options)
    assert counts == {Role.TRAIN: Count(1_281_167, (732, 1300)), Role.VAL: val, Role.TEST: test}
    assert ilsvrc.published(tmp_path, 999, options) == {}


def test_ilsvrc_validation_images_in_folders_of_their_classes(imagenet, told):
    plain = by_id(ilsvrc.read(imagenet, ilsvrc.Options()))
    val = imagenet / "Data/CLS-LOC/val"
    for name, (wnid, _) in BOXES.items():
        (val / wnid).mkdir(exist_ok=True)
        (val / f"{name}.JPEG").rename(val / wnid / f"{name}.JPEG")
    source = ilsvrc.read(imagenet, ilsvrc.Options())
    moved = by_id(source)
    assert moved.keys() == plain.keys()
    assert moved[f"val/{VAL[0]}.JPEG"].image == val / TENCH / f"{VAL[0]}.JPEG"
    assert "file cannot be read" not in told(source)


def test_ilsvrc_lists_must_not_overlap(imagenet, write):
    put(imagenet / "splits/test.txt", VAL[0])
    with pytest.raises(DataError, match="must not overlap"):
        write(imagenet / "out", ilsvrc.read(imagenet, ilsvrc.Options()))


def test_ilsvrc_files_of_one_stem_are_two_images(imagenet, jpeg):
    put(imagenet / f"Data/CLS-LOC/train/{TENCH}/{TENCH}_7.png", jpeg(7))
    rows = by_id(ilsvrc.read(imagenet, ilsvrc.Options()))
    assert {f"train/{TENCH}/{TENCH}_7.JPEG", f"train/{TENCH}/{TENCH}_7.png"} < set(rows)


@pytest.mark.parametrize(
    "text",
    [
        "<annotation>",
        XML.format(""),  # sound, but see below
        '<!DOCTYPE x [<!ENTITY a "aaaa">]><annotation>&a;</annotation>',  # an entity bomb begins so
        XML.format(OBJECT.format(TENCH, 1, 2, 3, "four")),
    ],
    ids=["cut", "no-object", "entity", "not-a-number"],
)
def test_ilsvrc_broken_xml(imagenet, write, text):
    put(imagenet / f"Annotations/CLS-LOC/val/{VAL[0]}.xml", text)
    with pytest.raises(DataError, match=VAL[0]):  # at once, or as the first bad row
        write(imagenet / "out", ilsvrc.read(imagenet, ilsvrc.Options()))


def test_wsolevaluation_lists_are_the_same_dataset(imagenet, metadata, write):
    """Ids, labels, boxes and images are equal, so the fingerprints are."""
    mine = write(imagenet / "a", ilsvrc.read(imagenet, ilsvrc.Options()))
    theirs = write(imagenet / "b", wsolevaluation.read(imagenet, metadata))
    assert theirs.classes == ("0", "1")
    assert theirs.train.fingerprint == mine.train.fingerprint
    assert theirs.val.fingerprint == mine.val.fingerprint
    assert theirs.test().fingerprint == mine.test().fingerprint


def test_wsolevaluation_masks(imagenet, metadata):
    name = f"val/{VAL[0]}.JPEG"
    put(imagenet / "lists/val/localization.txt", f"{name},m/a.png,m/i.png\n{name},m/b.png,\n")
    row = by_id(wsolevaluation.read(imagenet, metadata))[name]
    assert row.masks == (imagenet / "m/a.png", imagenet / "m/b.png")
    assert row.ignore == imagenet / "m/i.png"
    assert row.boxes == ()


def test_wsolevaluation_without_image_sizes(imagenet, metadata):
    """OpenImages30k's metadata has none, and no boxes or masks of training images."""
    sized = by_id(wsolevaluation.read(imagenet, metadata))
    for role in Role:
        (imagenet / f"lists/{role}/image_sizes.txt").unlink()
    (imagenet / "lists/train/localization.txt").unlink()
    rows = by_id(wsolevaluation.read(imagenet, metadata))
    assert rows == {name: replace(row, size=None) for name, row in sized.items()}


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("image_sizes.txt", "", "image_sizes.txt says nothing of this image"),
        ("image_sizes.txt", "val/{},40", "says '40' of this image where 2 whole numbers"),
        ("class_labels.txt", "", "class_labels.txt says nothing of this image"),
        ("class_labels.txt", "val/{},cat", "says 'cat' of this image where 1 whole numbers"),
        ("localization.txt", "val/{},1,2,3", "['1', '2', '3'], which is neither a box nor a mask"),
        ("localization.txt", "val/{},1,2,3,x", "which is neither a box nor a mask"),
    ],
)
def test_wsolevaluation_an_image_whose_lines_are_wrong(imagenet, metadata, told, file, text, reason):
    path = imagenet / "lists/val" / file
    others = [line for line in path.read_text().splitlines() if VAL[0] not in line]
    path.write_text("\n".join([*others, text.format(f"{VAL[0]}.JPEG")]))
    (line,) = told(wsolevaluation.read(imagenet, metadata)).splitlines()
    assert line.startswith(f"val/{VAL[0]}.JPEG: ")
    assert reason in line


def test_wsolevaluation_labels_that_cannot_be_numbers_of_classes(imagenet, metadata):
    """They would be a million million names."""
    path = imagenet / "lists/train/class_labels.txt"
    path.write_text(path.read_text().replace(",1", ",1000000000000"))
    with pytest.raises(DataError, match="labels go up to 1000000000000 but there are 4 training images"):
        wsolevaluation.read(imagenet, metadata)


def test_wsolevaluation_several_labels_make_it_multilabel(imagenet, metadata):
    name = f"train/{TENCH}/{TENCH}_7.JPEG"
    with (imagenet / "lists/train/class_labels.txt").open("a") as file:
        file.write(f"\n{name},1")
    source = wsolevaluation.read(imagenet, metadata)
    assert source.multilabel
    assert by_id(source)[name].labels == (0, 1)


def test_wsolevaluation_boxes_of_an_image_of_several_labels_are_refused(imagenet, metadata, told):
    """No line says which of both classes a box is of."""
    with (imagenet / "lists/val/class_labels.txt").open("a") as file:
        file.write(f"\nval/{VAL[0]}.JPEG,1")
    lines = told(wsolevaluation.read(imagenet, metadata))
    assert f"{VAL[0]}.JPEG: localization.txt has boxes or masks of this image, which is of the classes [0, 1]" in lines


def test_paths_cannot_lead_out_of_the_source(imagenet, metadata, told):
    put(imagenet / "lists/train/image_ids.txt", "../../secret.JPEG")
    put(imagenet / "lists/train/class_labels.txt", "../../secret.JPEG,0")
    put(imagenet / "lists/train/image_sizes.txt", "../../secret.JPEG,1,1")
    metadata = replace(metadata, class_names="names.txt")
    put(imagenet / "names.txt", "tench\nspringer\n")
    assert "leads out of" in told(wsolevaluation.read(imagenet, metadata))


@pytest.fixture
def imagenetv2(imagenet, jpeg):
    """One image of ImageNetV2 for each class, class folders named by label, in wsolevaluation's lists."""
    boxes = {"val2/0/0.jpeg": [(1, 2, 30, 20)], "val2/1/0.jpeg": [(3, 4, 5, 6), (7, 8, 39, 29)]}
    for number, name in enumerate(boxes):
        put(imagenet / "v2" / name, jpeg(50 + number))
    put(imagenet / "v2lists/image_ids.txt", "\n".join(boxes))
    put(imagenet / "v2lists/class_labels.txt", "val2/0/0.jpeg,0\nval2/1/0.jpeg,1\n")
    put(imagenet / "v2lists/image_sizes.txt", "\n".join(f"{name},40,30" for name in boxes))
    lines = [f"{name},{','.join(map(str, box))}" for name, own in boxes.items() for box in own]
    put(imagenet / "v2lists/localization.txt", "\n".join(lines))
    return ilsvrc.Options(imagenetv2="v2", imagenetv2_metadata="v2lists")


def test_ilsvrc_with_imagenetv2_tests_on_all_official_validation_images(imagenet, imagenetv2, write):
    source = ilsvrc.read(imagenet, imagenetv2)
    rows = {row.id: row for row in source.rows}
    assert {name for name, row in rows.items() if row.role is Role.TEST} == {f"val/{name}.JPEG" for name in BOXES}
    assert {name for name, row in rows.items() if row.role is Role.VAL} == {"val2/0/0.jpeg", "val2/1/0.jpeg"}
    assert rows["val2/1/0.jpeg"].labels == (1,)
    assert rows["val2/1/0.jpeg"].boxes == ((3, 4, 5, 6), (7, 8, 39, 29))
    dataset = write(imagenet / "out", ilsvrc.read(imagenet, imagenetv2))
    assert dataset.manifest.quarantine == {"train": 0, "val": 0, "test": 0}


def test_ilsvrc_imagenetv2_counts_all_classes(imagenet, imagenetv2, jpeg):
    """Its folders are numbers of the sorted wnids, which mean other classes in a part of ImageNet."""
    put(imagenet / "LOC_synset_mapping.txt", f"{TENCH} tench\n{SPRINGER} springer\nn99999999 third\n")
    with pytest.raises(DataError, match="2 classes but the training images are of 3"):
        ilsvrc.read(imagenet, imagenetv2)


def test_ilsvrc_imagenetv2_images_are_looked_for(imagenet, imagenetv2):
    (imagenet / "v2/val2").rename(imagenet / "v2/imagenetv2-threshold0.7")
    with pytest.raises(DataError, match=r"'val2/0/0.jpeg', which is not below .*v2"):
        ilsvrc.read(imagenet, imagenetv2)
    with pytest.raises(UsageError, match="needs both its images"):
        ilsvrc.Options(imagenetv2="v2")


@pytest.fixture
def folders(tmp_path, jpeg):
    for number, role in enumerate(Role):
        for label, name in enumerate(("cat", "ant")):
            put(tmp_path / role / name / "1.jpg", jpeg(10 * number + label))
    put(
        tmp_path / "boxes.csv",
        "path,x0,y0,x1,y1\nval/ant/1.jpg,1,2,3.5,4\nval/ant/1.jpg,0,0,40,30\ntest/cat/1.jpg,1,1,2,2\n",
    )
    return tmp_path


def test_folder(folders):
    source = folder.read(folders, folder.Options(convention="inclusive1"))
    rows = by_id(source)
    assert source.classes == ("ant", "cat")
    assert source.box_convention == "inclusive1"
    assert rows["val/ant/1.jpg"].boxes == ((1, 2, 3.5, 4), (0, 0, 40, 30))
    assert rows["train/cat/1.jpg"].labels == (1,)
    assert len(rows) == 6


def test_folder_masks(folders, png):
    put(folders / "masks/test/ant/1.png", png())
    rows = by_id(folder.read(folders, folder.Options()))
    assert rows["test/ant/1.jpg"].masks == (folders / "masks/test/ant/1.png",)
    assert {name for name, row in rows.items() if row.masks} == {"test/ant/1.jpg"}


@pytest.mark.parametrize("name", ["train/ant/1.png", "val/ant/2.png"])
def test_folder_mask_of_nothing(folders, png, write, name):
    put(folders / "masks" / name, png())
    with pytest.raises(DataError, match=f"{name} is a mask of no image of val or test"):
        write(folders / "out", folder.read(folders, folder.Options()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,y\n", "must begin with the line path,x0,y0,x1,y1"),
        ("path,x0,y0,x1,y1\nval/ant/1.jpg,1,2,3\n", "line 2: a box is four numbers"),
        ("path,x0,y0,x1,y1\nval/ant/9.jpg,1,2,3,4\n", "'val/ant/9.jpg', which is not an image"),
    ],
)
def test_folder_wrong_boxes(folders, write, text, message):
    put(folders / "boxes.csv", text)
    with pytest.raises(DataError, match=message):
        write(folders / "out", folder.read(folders, folder.Options()))


def test_folder_unknown_class(folders, jpeg, told):
    put(folders / "val/cta/1.jpg", jpeg(99))
    assert "val/cta/1.jpg: Unknown class in val/ 'cta'. Did you mean 'cat'" in told(
        folder.read(folders, folder.Options())
    )


def test_folder_links_out_of_the_source_are_not_followed(folders, tmp_path_factory, jpeg, told):
    outside = put(tmp_path_factory.mktemp("outside") / "1.jpg", jpeg(5))
    (folders / "train/ant/2.jpg").symlink_to(outside)
    assert "leads out of" in told(folder.read(folders, folder.Options()))


ALBATROSS, AUKLET = "001.Black_footed_Albatross", "005.Crested_Auklet"


@pytest.fixture
def birds(tmp_path, jpeg):
    """Two classes of CUB with ten training images and one test image each; numbers of images do not follow classes."""
    root = tmp_path / "CUB_200_2011"
    files = [(f"{name}/{name}_{n}.jpg", label, n) for n in range(11) for label, name in ((1, ALBATROSS), (5, AUKLET))]
    put(root / "classes.txt", f"1 {ALBATROSS}\n5 {AUKLET}\n")
    put(root / "images.txt", "".join(f"{at} {name}\n" for at, (name, _, _) in enumerate(files, 1)))
    put(root / "image_class_labels.txt", "".join(f"{at} {label}\n" for at, (_, label, _) in enumerate(files, 1)))
    put(root / "train_test_split.txt", "".join(f"{at} {int(n < 10)}\n" for at, (_, _, n) in enumerate(files, 1)))
    put(root / "bounding_boxes.txt", "".join(f"{at} 3.0 4.0 20.0 {at}.0\n" for at in range(1, 23)))
    for at, (name, _, _) in enumerate(files):
        put(root / "images" / name, jpeg(at))
    return tmp_path


@pytest.fixture
def cubv2(birds, jpeg):
    """CUBV2 with one image a class, images and lists in two folders."""
    ids = [f"{ALBATROSS}/30107316117.jpg", f"{AUKLET}/5699395334.jpg"]
    for number, name in enumerate(ids):
        put(birds / "CUBV2" / name, jpeg(80 + number))
    put(birds / "lists/image_ids.txt", "\n".join(ids))
    put(birds / "lists/class_labels.txt", f"{ids[0]},0\n{ids[1]},1\n")
    put(birds / "lists/image_sizes.txt", "\n".join(f"{name},40,30" for name in ids))
    put(birds / "lists/localization.txt", "\n".join(f"{name},1,2,{30 + at},29" for at, name in enumerate(ids)))
    return cub.Options(cubv2="CUBV2", cubv2_metadata="lists")


def test_cub(birds, cubv2, write):
    source = cub.read(birds, cubv2)
    rows = {row.id: row for row in source.rows}
    assert source.classes == (ALBATROSS, AUKLET)
    assert source.box_convention == "inclusive0"
    assert sum(row.role is Role.TRAIN for row in rows.values()) == 20
    assert {name for name, row in rows.items() if row.role is Role.TEST} == {
        f"{ALBATROSS}/{ALBATROSS}_10.jpg",
        f"{AUKLET}/{AUKLET}_10.jpg",
    }
    tested = rows[f"{AUKLET}/{AUKLET}_10.jpg"]  # line 22: 3 4 20 22
    assert tested.labels == tested.box_labels == (1,)
    assert tested.boxes == ((3, 4, 23, 26),)
    held_out = [row for row in rows.values() if row.role is Role.VAL]
    assert [(row.labels, row.boxes) for row in held_out] == [((0,), ((1, 2, 30, 29),)), ((1,), ((1, 2, 31, 29),))]
    assert source.counts[Role.VAL] == Count(1000, (3, 6))
    dataset = write(birds / "out", source)
    assert dataset.manifest.quarantine == {"train": 0, "val": 0, "test": 0}


def test_cub_segmentations(birds, png):
    name = f"{AUKLET}/{AUKLET}_10"
    put(birds / "segmentations" / f"{name}.png", png())
    rows = by_id(cub.read(birds, cub.Options(val_share=0.1)))
    assert rows[f"{name}.jpg"].masks == (birds / "segmentations" / f"{name}.png",)


def test_cub_gives_up_a_share_of_each_class(birds):
    def held_out(**options):
        return {row.id for row in by_id(cub.read(birds, cub.Options(**options)), Role.VAL).values()}

    drawn = held_out(val_share=0.3)
    assert sorted(name.split("/")[0] for name in drawn) == [ALBATROSS] * 3 + [AUKLET] * 3
    assert drawn == held_out(val_share=0.3)
    assert held_out(val_share=0.1) < drawn
    rows = by_id(cub.read(birds, cub.Options(val_share=0.3)))
    assert [sum(row.role is role for row in rows.values()) for role in Role] == [14, 6, 2]  # test is as it was


@pytest.mark.parametrize("options", [{}, {"cubv2": "CUBV2", "val_share": 0.1}])
def test_cub_says_where_validation_images_come_from(birds, options):
    with pytest.raises(UsageError, match=r"wsolevaluation.*--val-share 0\.1"):
        cub.read(birds, cub.Options(**options))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("classes.txt", "1\n", "not a number and 1 more words: '1'"),
        ("classes.txt", f"1 {ALBATROSS}\n", "is of class '5', which classes.txt does not list"),
        ("image_class_labels.txt", "1 1\n", f"{AUKLET}_0.jpg: image_class_labels.txt has no line of image 2"),
        ("bounding_boxes.txt", "1 3 4 20 1\n1 3 4 20 2\n", "several lines of number 1"),
        ("classes.txt", "\u00b2 two\n", "not a number and 1 more words"),
        ("train_test_split.txt", "".join(f"{at} 2\n" for at in range(1, 23)), "must say 1 or 0 but says '2'"),
        ("bounding_boxes.txt", "1 2 3 4\n", "not a number and 4 more words"),
        ("bounding_boxes.txt", "".join(f"{at} 1 2 3 x\n" for at in range(1, 23)), "'1 2 3 x' where four numbers"),
        ("images.txt", "1 ../../secret.jpg\n", "leads out of"),
    ],
)
def test_cub_broken_tables(birds, told, name, text, message):
    put(birds / "CUB_200_2011" / name, text)
    assert message in told(cub.read(birds, cub.Options(val_share=0.1)))


@pytest.fixture
def tiny_imagenet(tmp_path, jpeg):
    """Two classes with twelve training images each, so that 10 and 11 come after 9 by number alone."""
    for number, wnid in enumerate((TENCH, SPRINGER)):
        lines = [f"{wnid}_{n}.JPEG\t0\t{n}\t39\t29" for n in range(12)]
        put(tmp_path / f"train/{wnid}/{wnid}_boxes.txt", "\n".join(lines))
        for n in range(12):
            put(tmp_path / f"train/{wnid}/images/{wnid}_{n}.JPEG", jpeg(20 * number + n))
        put(tmp_path / f"val/images/val_{number}.JPEG", jpeg(90 + number))
    put(tmp_path / "val/val_annotations.txt", f"val_0.JPEG\t{SPRINGER}\t1\t2\t3\t4\nval_1.JPEG\t{TENCH}\t0\t0\t5\t5\n")
    put(tmp_path / "wnids.txt", f"{SPRINGER}\n{TENCH}\n")
    put(tmp_path / "words.txt", f"n00000001\tnothing\n{TENCH}\ttench, Tinca tinca\n")
    return tmp_path


def test_tinyimagenet(tiny_imagenet, write):
    source = tinyimagenet.read(tiny_imagenet, tinyimagenet.Options(val_per_class=2))
    rows = by_id(source)
    assert source.classes == (f"{TENCH} tench, Tinca tinca", SPRINGER)
    assert [sum(row.role is role for row in rows.values()) for role in Role] == [20, 4, 2]
    assert {name for name, row in rows.items() if row.role is Role.VAL} == {
        f"train/{wnid}/images/{wnid}_{n}.JPEG" for wnid in (TENCH, SPRINGER) for n in (10, 11)
    }
    assert rows[f"train/{SPRINGER}/images/{SPRINGER}_11.JPEG"].boxes == ((0, 11, 39, 29),)
    assert rows["val/images/val_0.JPEG"].role is Role.TEST
    assert rows["val/images/val_0.JPEG"].labels == (1,)
    assert rows["val/images/val_0.JPEG"].boxes == ((1, 2, 3, 4),)
    assert source.counts == {  # of two classes: 500 for training in all, 50 for validation
        Role.TRAIN: Count(996, (498, 498)),
        Role.VAL: Count(4, (2, 2)),
        Role.TEST: Count(100, (50, 50)),
    }
    assert write(tiny_imagenet / "out", source).manifest.quarantine == {"train": 0, "val": 0, "test": 0}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("val/val_annotations.txt", "val_0.JPEG n1 1 2 3 4", "is of class 'n1', which wnids.txt does not list"),
        ("val/val_annotations.txt", f"val_0.JPEG {TENCH} 1 2 3", "line of 5 words where 6 belong"),
        ("val/val_annotations.txt", f"../../../a.JPEG {TENCH} 1 2 3 4", "leads out of"),
        (f"train/{TENCH}/{TENCH}_boxes.txt", "a_0.JPEG 1 2 3 x", "'1 2 3 x' where four numbers belong"),
        ("wnids.txt", "../../etc", "leads out of"),
    ],
)
def test_tinyimagenet_broken_tables(tiny_imagenet, told, name, text, message):
    put(tiny_imagenet / name, text)
    assert message in told(tinyimagenet.read(tiny_imagenet, tinyimagenet.Options()))


SMALL = synthetic.Options(train=12, val=6, test=6, classes=3, size=48, seed=3)


def test_synthetic_is_deterministic_by_seed():
    one, two = (by_id(synthetic.read(Path(), SMALL)) for _ in range(2))
    assert one == two
    assert one != by_id(synthetic.read(Path(), synthetic.Options(train=12, val=6, test=6, classes=3, size=48, seed=4)))


def test_synthetic_counts_and_labels():
    rows = by_id(synthetic.read(Path(), SMALL))
    assert [sum(row.role is role for row in rows.values()) for role in Role] == [12, 6, 6]
    assert sorted(row.labels[0] for row in rows.values() if row.role is Role.TRAIN) == [0] * 4 + [1] * 4 + [2] * 4
    assert all(len(row.boxes) == 1 for row in rows.values())  # of training rows for data/audit.py alone


def test_synthetic_box_is_the_extent_of_the_body(monkeypatch):
    """Draw a body in pure white on black: the box must be the extent of what changed."""
    monkeypatch.setattr(synthetic, "_background", lambda rng, size: synthetic.np.zeros((size, size, 3), "uint8"))
    monkeypatch.setattr(synthetic, "_clutter", lambda rng, image: None)
    monkeypatch.setattr(synthetic, "_fur", lambda rng, size, hue: Image.new("RGB", (size, size), "white"))
    for seed in range(20):
        image, (body,) = synthetic.draw(synthetic.np.random.default_rng(seed), (1,), SMALL)
        assert image.getbbox() == body.getbbox()


def test_synthetic_objects_stand_side_by_side_each_with_its_box_and_class_mask():
    options = replace(SMALL, val=12, objects=3)
    source = synthetic.read(Path(), options)
    rows = [row for row in source.rows if row.role is Role.VAL]
    assert source.multilabel
    assert [row.labels for row in rows[2:7]] == [(2,), (0, 1), (1, 2), (2, 0), (0, 1, 2)]
    for row in rows:
        (mask,) = row.masks
        labels_HW = np.array(Image.open(io.BytesIO(mask)))
        assert set(np.unique(labels_HW)) == {0, *(label + 1 for label in row.labels)}
        for label, (x0, y0, x1, y1) in zip(row.box_labels, row.boxes, strict=True):
            ys, xs = np.nonzero(labels_HW == label + 1)
            assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (x0, y0, x1, y1)
        assert all(left[2] <= right[0] for left, right in pairwise(row.boxes))


def test_synthetic_emblems_come_again_in_other_colours():
    assert synthetic.class_names(14)[5:8] == ("dots", "cross-2", "ring-2")
    assert synthetic.class_names(14)[-1] == "ring-3"
    ring, again = Image.new("RGB", (48, 48)), Image.new("RGB", (48, 48))
    for image, label in ((ring, 1), (again, 7)):
        synthetic._emblem(image, label, classes=12, centre=(24, 24), radius=20, saturation=1.0)
    ring_HW3, again_HW3 = np.array(ring), np.array(again)
    lit_HW = ring_HW3.max(-1) > 20
    np.testing.assert_array_equal(lit_HW, again_HW3.max(-1) > 20)
    assert (ring_HW3 != again_HW3)[lit_HW].any(-1).all()


def test_synthetic_makes_a_dataset_without_bad_rows(write, tmp_path):
    dataset = write(tmp_path, synthetic.read(Path(), SMALL))
    assert dataset.manifest.quarantine == {"train": 0, "val": 0, "test": 0}


@pytest.mark.parametrize("options", [{"classes": 25}, {"size": 16}, {"val": 1}, {"objects": 6}])
def test_synthetic_refuses_what_it_cannot_draw(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        synthetic.Options(**options)


def test_importers_are_found_by_file_name():
    assert names() == ["coco", "cub", "folder", "ilsvrc", "synthetic", "tinyimagenet", "voc", "wsolevaluation"]
    assert importer("folder") is folder
    with pytest.raises(UsageError, match="Did you mean 'ilsvrc'"):
        importer("ilsrvc")


@pytest.mark.parametrize("name", ["coco", "cub", "folder", "ilsvrc", "tinyimagenet", "voc", "wsolevaluation"])
def test_a_folder_of_another_layout_is_refused(name, tmp_path):
    module = importer(name)
    with pytest.raises(DataError, match=str(tmp_path)):
        module.read(tmp_path, module.Options())
