"""ILSVRC 2012 CLS-LOC, as Kaggle and image-net.org give it out.

    Data/CLS-LOC/train/<wnid>/*.JPEG           Annotations/CLS-LOC/val/*.xml (or LOC_val_solution.csv)
    Data/CLS-LOC/val/*.JPEG (or <wnid>/*)      ImageSets/CLS-LOC/{train_cls,val}.txt (optional)
    LOC_synset_mapping.txt (optional)          splits/{val,test}.txt (optional)

The official validation images become `val` and `test`: by the lists in `splits/` if they are there, else
`val_per_class` images of each class, drawn by a hash of their ids, are `val` and all others are `test`. With
ImageNetV2 given, its images are `val`, as in wsolevaluation, and the official ones are all `test`. Labels count the
sorted wnids. Boxes are stored as the XML has them. Ids are paths below `Data/CLS-LOC`, as those of the
wsolevaluation lists are.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wsol_pipeline.data.importers import (
    Count,
    Source,
    below,
    by_class_and_hash,
    faulty,
    folders_in,
    images_below,
    is_hidden,
    read_lines,
)
from wsol_pipeline.data.importers._xml import Annotation, Object, read_annotation
from wsol_pipeline.data.importers.wsolevaluation import validation
from wsol_pipeline.data.schema import Fault, Kind, Row, RowError
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.protocol import Role


@dataclass(frozen=True)
class Options:
    """Options of the ILSVRC layout."""

    val_per_class: int = 10
    """Validation images of each class that become `val`, the rest `test`, where splits/ does not say."""
    imagenetv2: str = ""
    """Folder with val2/<class>/*.jpeg: ImageNetV2 (threshold 0.7), renamed. Absolute or relative to the source."""
    imagenetv2_metadata: str = ""
    """Folder of ImageNetV2's lists: metadata/ILSVRC/val of github.com/clovaai/wsolevaluation."""

    def __post_init__(self) -> None:
        if bool(self.imagenetv2) != bool(self.imagenetv2_metadata):
            raise UsageError(
                "ImageNetV2 as validation needs both its images (--imagenetv2, a folder with val2/) and the lists with "
                "its boxes (--imagenetv2-metadata, metadata/ILSVRC/val of github.com/clovaai/wsolevaluation)."
            )


def read(source: Path, options: Options) -> Source:
    """Find the images and annotations below `source` (or its folder `ILSVRC`, as Kaggle's archive has it)."""
    root = source / "ILSVRC" if (source / "ILSVRC").is_dir() else source
    images = root / "Data" / "CLS-LOC"
    if not (images / "train").is_dir():
        raise DataError(f"{source} is not in the ILSVRC layout: there is no Data/CLS-LOC/train.")
    faults: list[str] = []
    names = _class_names(source, images)
    labels = {wnid: label for label, wnid in enumerate(names)}
    rows = [
        *_training(images, _train_names(root, faults), labels),
        *_official_val(source, root, labels, options, faults),
    ]
    if options.imagenetv2:
        rows += validation(source / options.imagenetv2_metadata, source / options.imagenetv2, len(names))
    counts = published(source, len(names), options)
    walked = (images / "train", images / "val")
    return Source(tuple(names.values()), "inclusive0", rows, counts=counts, faults=tuple(faults), folders=walked)


def published(source: Path, num_classes: int, options: Options) -> dict[Role, Count]:
    """Images of each split of the whole of ImageNet; a part of it, or lists in splits/, may have any number."""
    if num_classes != 1000:
        return {}
    counts = {Role.TRAIN: Count(1_281_167, (732, 1300))}
    if options.imagenetv2:
        return counts | {Role.VAL: Count(10_000, (10, 10)), Role.TEST: Count(50_000, (50, 50))}
    if (source / "splits").is_dir():
        return counts
    of_class = {Role.VAL: options.val_per_class, Role.TEST: 50 - options.val_per_class}
    return counts | {role: Count(1000 * number, (number, number)) for role, number in of_class.items()}


def _class_names(source: Path, images: Path) -> dict[str, str]:
    """wnid -> "wnid name", in the order of labels."""
    mapping = source / "LOC_synset_mapping.txt"
    if mapping.exists():
        return {line.split()[0]: line.strip() for line in sorted(read_lines(mapping))}
    return {path.name: path.name for path in folders_in(images / "train", [])}


def _training(images: Path, names: list[str], labels: dict[str, int]) -> Iterator[Row]:
    for name in names:
        wnid = name.split("/")[0]
        try:
            if wnid not in labels:
                raise RowError(Kind.LABEL, f"image is of class {wnid!r}, which LOC_synset_mapping.txt does not list")
            yield Row(Role.TRAIN, f"train/{name}", (labels[wnid],), below(images, f"train/{name}"))
        except RowError as error:
            yield faulty(Role.TRAIN, f"train/{name}", error.fault)


def _official_val(
    source: Path, root: Path, labels: dict[str, int], options: Options, faults: list[str]
) -> Iterator[Row]:
    """The official validation images. Puts what is wrong beside rows into `faults`."""
    images, notes = root / "Data" / "CLS-LOC", _annotations(source, root, faults)
    for name, role in _roles(source, notes, options, faults).items():
        found = notes.get(name, Fault(Kind.ANNOTATION, "image has no annotation"))
        try:
            if isinstance(found, Fault):
                raise RowError(*found)
            path = _official_image(images, name, found)
        except RowError as error:
            yield faulty(role, f"val/{name}.JPEG", error.fault)
            continue
        yield Row(
            role,
            f"val/{name}.JPEG",
            tuple(sorted({labels[thing.name] for thing in found.objects if thing.name in labels})),
            path,
            found.size,
            tuple(thing.box for thing in found.objects),
            tuple(labels.get(thing.name, -1) for thing in found.objects),
        )


def _official_image(images: Path, name: str, found: Annotation) -> Path:
    """A validation image: in val/, or in the folder of its class where it was moved for torchvision's ImageFolder."""
    plain = below(images, f"val/{name}.JPEG")
    moved = (below(images, f"val/{thing.name}/{name}.JPEG") for thing in found.objects[:1] if not plain.exists())
    return next((path for path in moved if path.exists()), plain)


def _train_names(root: Path, faults: list[str]) -> list[str]:
    """Paths below train/."""
    listed, folder = root / "ImageSets" / "CLS-LOC" / "train_cls.txt", root / "Data" / "CLS-LOC" / "train"
    if listed.exists():
        return [f"{line.split()[0]}.JPEG" for line in read_lines(listed)]
    return [path.relative_to(folder).as_posix() for path in images_below(folder, faults)]


def _annotations(source: Path, root: Path, faults: list[str]) -> dict[str, Annotation | Fault]:
    """Annotation of each validation image by name, or why there is none."""
    folder, table = root / "Annotations" / "CLS-LOC" / "val", source / "LOC_val_solution.csv"
    listed = root / "ImageSets" / "CLS-LOC" / "val.txt"
    if folder.is_dir():
        names = [line.split()[0] for line in read_lines(listed)] if listed.exists() else []
        found = sorted(path.stem for path in folder.glob("*.xml") if not is_hidden(path.name))
        return {name: _annotation(folder, name) for name in names or found}
    if table.exists():
        return dict(pair for line in read_lines(table)[1:] for pair in _from_csv(line, table, faults))
    raise DataError(f"{source} has neither Annotations/CLS-LOC/val nor LOC_val_solution.csv: validation needs boxes.")


def _annotation(folder: Path, name: str) -> Annotation | Fault:
    try:
        return read_annotation(below(folder, f"{name}.xml"))
    except RowError as error:
        return error.fault


def _from_csv(line: str, table: Path, faults: list[str]) -> Iterator[tuple[str, Annotation]]:
    """`name,wnid x0 y0 x1 y1 wnid x0 y0 x1 y1 ...`."""
    try:
        name, text = line.split(",")
        words = text.split()
        groups = [words[start : start + 5] for start in range(0, len(words), 5)]
        objects = tuple(Object(wnid, (float(x0), float(y0), float(x1), float(y1))) for wnid, x0, y0, x1, y1 in groups)
    except ValueError:
        faults.append(f"{table} has a line that is not `image,wnid x0 y0 x1 y1 ...`: {line[:80]!r}.")
    else:
        yield name, Annotation(None, objects)


def _roles(source: Path, notes: dict[str, Annotation | Fault], options: Options, faults: list[str]) -> dict[str, Role]:
    """Which of the official validation images are `val`, which are `test`."""
    if options.imagenetv2:
        return dict.fromkeys(notes, Role.TEST)
    lists = {role: source / "splits" / f"{role}.txt" for role in (Role.VAL, Role.TEST)}
    if all(path.exists() for path in lists.values()):
        listed = [(line.strip(), role) for role, path in lists.items() for line in read_lines(path)]
        twice = [name for name, count in Counter(name for name, _ in listed).items() if count > 1]
        faults += [f"splits/val.txt and splits/test.txt list {name!r} twice: they must not overlap." for name in twice]
        return dict(listed)
    class_of = {name: _first_class(note) for name, note in notes.items()}
    groups = by_class_and_hash(class_of)
    val = {name for members in groups for name in members[: options.val_per_class]}
    return {name: Role.VAL if name in val else Role.TEST for name in notes}


def _first_class(note: Annotation | Fault) -> str:
    return note.objects[0].name if isinstance(note, Annotation) and note.objects else ""
