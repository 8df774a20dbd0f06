"""Whatever each split comes with, a study is refused before it starts or measures just what it has promised."""

import dataclasses
import io
import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayjobs import evaluate as evaluate_job
from rayjobs import report as report_job
from search_spaces import presets
from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.data.importers import synthetic
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.errors import UsageError
from wsol_pipeline.evaluation.measures import Truth, choosing, promise
from wsol_pipeline.evaluation.protocols import PROTOCOLS, protocol
from wsol_pipeline.protocol import Role
from wsol_pipeline.storage import Store
from wsol_pipeline.study.ledger import SCHEMA
from wsol_pipeline.study.outcome import model_named
from wsol_pipeline.study.plan import truths
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.loop import train
from wsol_pipeline.verdict import score as scoring
from wsol_pipeline.verdict.options import EvaluateOptions
from wsol_pipeline.verdict.rows import Contender

KINDS = ("boxes", "masks", "both", "none")
# protocol -> the pairs of val and test that it can choose on and judge, of one class an image
BOTH_BOXES = set(product(("boxes", "both"), repeat=2))
MASKS_ON_TEST = set(product(("boxes", "masks", "both"), ("masks", "both")))
POSSIBLE = {
    "wsol-v2": BOTH_BOXES,
    "bas-ext": BOTH_BOXES,
    "mldfr-multi": BOTH_BOXES,
    "wsol-mask": MASKS_ON_TEST,
    "wsol-mask-background": MASKS_ON_TEST,
    "bas-ext-mask": MASKS_ON_TEST,
    "voc-miou": set(),
}
SEVERAL = POSSIBLE | {"voc-miou": set(product(("masks", "both"), repeat=2))}


def png(box) -> bytes:
    """A mask that is a box of the 40 px image."""
    mask_HW, file = np.zeros((40, 40), np.uint8), io.BytesIO()
    x0, y0, x1, y1 = map(int, box)
    mask_HW[y0:y1, x0:x1] = 255
    Image.fromarray(mask_HW).save(file, "PNG")
    return file.getvalue()


def with_truth(row, kind):
    """A generated row with boxes alone, masks alone or both."""
    masks = row.masks or tuple(map(png, row.boxes))
    if kind == "boxes":
        return replace(row, masks=())
    return replace(row, masks=masks) if kind == "both" else replace(row, masks=masks, boxes=(), box_labels=())


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """`make(multilabel, val, test)`: a dataset of 12, 6 and 6 images whose splits come with that."""
    known = {}

    def written(multilabel, val, test):
        where = tmp_path_factory.mktemp("truths")
        options = synthetic.Options(train=12, val=6, test=6, classes=3, objects=2 if multilabel else 1, size=40)
        source, kinds = synthetic.read(Path(), options), {Role.VAL: val, Role.TEST: test}
        rows = [with_truth(row, kinds[row.role]) if row.role in kinds else row for row in source.rows]
        import_dataset(replace(source, rows=rows), Store.at(where), name="t", origin={"importer": "synthetic"})
        return open_dataset(str(where))

    def made(multilabel, val, test):
        real = tuple("boxes" if kind == "none" else kind for kind in (val, test))
        if (multilabel, *real) not in known:
            known[multilabel, *real] = written(multilabel, *real)
        dataset, bare = known[multilabel, *real], {"boxes": 0, "masks": 0}
        splits = {role: replace(dataset.manifest.splits[role], **bare)
                  for role, kind in ((Role.VAL, val), (Role.TEST, test)) if kind == "none"}  # fmt: skip
        manifest = replace(dataset.manifest, splits={**dataset.manifest.splits, **splits})
        return dataclasses.replace(dataset, manifest=manifest)

    return made


@pytest.fixture
def judged(make_config, reading, tmp_path):
    """`judged(dataset, protocol)`: the promise, the last record of a training, and the row of its evaluation."""

    def run(dataset, name):
        rules = protocol(name, 32, 36)
        promised = promise(rules, *truths(dataset))
        config = make_config("cam", protocol=name, objective=promised.objective, epochs=1, batch_size=6)
        checkpoints = CheckpointStore(Store.at(tmp_path / f"{name}-{dataset.fingerprint[:12]}"), 1)
        *_, record = train(config, dataset, checkpoints, reading=reading)
        options = EvaluateOptions(cache_dir=reading.cache_dir, batch_size=6)
        result, _ = scoring.score(Contender("x", "x", checkpoints.final()), dataset, options, "cpu")
        centred = scoring.centred_box(options, dataset, rules, scoring.test_rows(options, dataset, rules))
        return promised, record, result["rows"][0], centred

    return run


def names(metrics):
    """Metrics without what stands beside them: the level of Peak_IoU, and the thresholds of single images."""
    return {name for name in metrics if name != "peak_t" and not name.startswith("ois_")}


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("name", POSSIBLE)
def test_every_pair_of_truths_is_refused_at_once_or_measured_as_promised(name, multilabel, make, judged):
    possible = (SEVERAL if multilabel else POSSIBLE)[name]
    for val, test in product(KINDS, KINDS):
        dataset = make(multilabel, val, test)
        if (val, test) not in possible:
            with pytest.raises(
                UsageError,
                match=f"{name} scores .*(these data allow: --protocol|No protocol can|data have labels alone)",
            ):
                promise(protocol(name), *truths(dataset))
            continue
        promised, record, row, centred = judged(dataset, name)
        assert record["choice"]["metric"] == promised.objective
        assert names(row["val"]) == names(record["val"]) == set(promised.val), (val, test)
        assert names(row["transferred"]) == set(promised.transferred), (val, test)
        assert names(row["oracle"]) == set(promised.oracle), (val, test)
        assert names(row["intervals"]["transferred"]) <= set(promised.transferred)
        assert names(centred.transferred) <= set(promised.transferred)
        assert centred.transferred or "pxap" not in promised.transferred


@pytest.mark.parametrize(("name", "measure"), [("wsol-v2", "max_box_acc_v2"), ("wsol-mask", "pxap")])
def test_cub_is_judged_and_reported(name, measure, make, judged, reading, tmp_path, monkeypatch, capsys):
    """Boxes on validation, boxes and masks on test: through the jobs, to the last screen and the page."""
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "RAY_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    dataset = make(False, "boxes", "both")
    judged(dataset, name)
    (final,) = tmp_path.glob(f"{name}-*/*/final")
    winner = {"method": "cam", "trial": 0, "trials": 1, "published": None, "data": dataset.uri, "study": ""}
    winner |= {"schema": SCHEMA, **model_named(Store(str(final)), Store.at(tmp_path))}
    Store.at(tmp_path / "s").write("winner.json", json.dumps(winner).encode())
    where = ["--study", "s", "--storage", str(tmp_path)]
    assert evaluate_job.main([*where, "--no-champion", "--device", "cpu", "--cache-dir", reading.cache_dir]) == 0
    told = capsys.readouterr().out
    assert f"{measure} (%), protocol {name}, 6 test images" in told
    assert "s: winner on test: " in told
    assert report_job.main(where) == 0
    page, table = ((tmp_path / "s" / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "on 6 test images" in page
    if name == "wsol-mask":
        assert "piou (%), protocol wsol-mask" in told
        assert "| MaxBoxAccV2 val | PxAP test | PxAP oracle | pIoU oracle |" in table
        assert "PxAP on 6 test images" in page


def test_masks_on_test_alone_have_no_threshold_and_an_upper_bound():
    boxes, both = Truth(1000, 1000, 0, False), Truth(5794, 5794, 5794, False)
    found = promise(protocol("wsol-mask"), boxes, both)
    assert found.objective == "max_box_acc_v2"
    assert "piou" not in found.transferred
    assert {"pxap", "piou"} <= set(found.oracle)
    assert found.sentences == (
        "validation: 1,000 images, boxes alone; chooses trial and readout by max_box_acc_v2, for wsol-mask scores "
        "masks and there are none",
        "test: 5,794 images, boxes and masks; measures pxap, cls_top1 at what validation chose; piou as an upper bound "
        "alone: validation has no masks to choose its threshold on",
    )
    with pytest.raises(UsageError, match="pxap under wsol-mask needs masks but the 'val' split has boxes alone; --obj"):
        promise(protocol("wsol-mask"), boxes, both, "pxap")
    assert promise(protocol("wsol-mask"), both, both).objective == "pxap"


def test_what_validation_maximises_must_be_there_to_be_judged():
    boxes, both = Truth(6, 6, 0, False), Truth(6, 6, 6, False)
    with pytest.raises(UsageError, match="pxap needs masks but the 'test' split has boxes alone"):
        promise(protocol("wsol-v2"), both, boxes, "pxap")
    assert promise(protocol("wsol-v2"), both, both, "pxap").objective == "pxap"


def test_a_split_of_which_some_images_have_no_box_says_how_many():
    with pytest.raises(UsageError, match="wsol-v2 scores boxes but 2 of 6 images of 'val' lack one. What .*wsol-mask"):
        promise(protocol("wsol-v2"), Truth(6, 4, 6, False), Truth(6, 6, 6, False))


def test_labels_alone_are_refused_with_what_would_do():
    labels = Truth(6, 0, 0, False)
    with pytest.raises(UsageError, match="scores boxes but the 'val' split has labels alone. These data .*: "):
        promise(protocol("wsol-v2"), labels, labels)
    with pytest.raises(UsageError, match="'test' split has labels alone. No protocol can: 'val' has boxes alone"):
        promise(protocol("wsol-v2"), Truth(6, 6, 0, False), labels)


def test_every_row_of_cub_can_be_judged_on_cub():
    """CUBV2 has boxes, the test split segmentations too."""
    val, test = Truth(1000, 1000, 0, False), Truth(5794, 5794, 5794, False)
    rows = [row for row in presets().values() if row.dataset == "cub"]
    assert len(rows) > 200
    for row in rows:
        found = promise(protocol(row.protocol), val, test)
        masks = not PROTOCOLS[row.protocol].ious
        assert ("pxap" if masks else "gt_known_loc") in found.transferred
        assert choosing(protocol(row.protocol), val).ious
