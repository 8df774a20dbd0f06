"""A readout of stored photographs on its way: trained with, evaluated on any ranks and readers, served."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from wsol_pipeline.data.dataset import open_dataset
from wsol_pipeline.data.importers import Source
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.data.reader import ReadConfig, eval_rows
from wsol_pipeline.data.schema import Row
from wsol_pipeline.evaluation.evaluate import count
from wsol_pipeline.evaluation.maps import normalised_map
from wsol_pipeline.images import normalize
from wsol_pipeline.protocol import Role
from wsol_pipeline.storage import Store
from wsol_pipeline.tracking.serve import ServedModel
from wsol_pipeline.training.model import load_model

SIZES = ((90, 60), (90, 60), (70, 100))
PYRAMID = {"scales": [0.5, 1.5, 2], "over": "topk", "options": {"ks": [1]}}


def photograph(number: int) -> bytes:
    """A bright square of the class's colour on noise, all larger than what the network sees."""
    width, height = SIZES[number % 5 % 3]
    pixels = np.random.default_rng(number).integers(0, 120, (height, width, 3), np.uint8)
    pixels[20:50, 30:60, number % 3] = 255
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    where, rows = str(tmp_path_factory.mktemp("photographs")), []
    for first, role, many in ((0, Role.TRAIN, 42), (100, Role.VAL, 14), (200, Role.TEST, 9)):
        for number in range(first, first + many):
            size = SIZES[number % 5 % 3]
            rows.append(
                Row(role, f"{number}", (number % 3,), photograph(number), size, ((30, 20, 59, 49),), (number % 3,))
            )
    source = Source(("red", "green", "blue"), "inclusive0", rows)
    import_dataset(source, Store.at(where), name="photographs", origin={"importer": "test"})
    return open_dataset(where)


@pytest.fixture
def model(make_config, fit, request):
    changes = {"readout": "pyramid", "readout_options": PYRAMID, "protocol": request.param, "objective": "gt_known_loc"}
    return load_model(fit(make_config("mldfr", **changes)).final)


def maps_of(model, rows, **options):
    """The map of every image at the setting that was chosen, by its id."""
    found = {}

    def keep(rows_B, batch, maps_BHW, *_):
        found.update(zip(batch.ids, maps_BHW, strict=True))

    count(model.method, model.readout, rows, model.protocol, settings=[model.choice.readout], on_maps=keep, **options)
    return found


@pytest.mark.parametrize("model", ["mldfr", "wsol-v1", "bas-ext"], indirect=True)
def test_ranks_and_readers_show_the_same_maps(model, dataset, reading):
    """Batches differ, and so do last bits: in float64."""
    model.method.double()
    config = ReadConfig(36, 32, cache_dir=reading.cache_dir, mode="cached")
    streaming = ReadConfig(36, 32, cache_dir=reading.cache_dir, mode="streaming")
    geometry = model.protocol.geometry
    as_doubles = {"prepare": lambda images, device: normalize(images, device, torch.float64)}
    whole = maps_of(model, eval_rows(dataset.val, config, geometry, 5), **as_doubles)
    assert list(whole) == dataset.val.ids
    ranks = [
        maps_of(model, eval_rows(dataset.val, streaming, geometry, 4, rank=r, world=2), **as_doubles) for r in (0, 1)
    ]
    assert [name for rank in ranks for name in rank] == dataset.val.ids
    for name, maps in (ranks[0] | ranks[1]).items():
        assert maps.dtype == torch.float64
        torch.testing.assert_close(maps, whole[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("model", ["mldfr", "wsol-v1", "bas-ext"], indirect=True)
def test_the_served_map_is_the_evaluations(model, dataset, reading, tmp_path):
    rows = eval_rows(dataset.val, ReadConfig(36, 32, cache_dir=reading.cache_dir), model.protocol.geometry, 1)
    shown = maps_of(model, rows)
    served = ServedModel()
    served.load_context(SimpleNamespace(artifacts={"model": next(tmp_path.rglob("model.json")).parent}))
    compared = 0
    for number in range(100, 114):
        pixels = np.asarray(Image.open(io.BytesIO(photograph(number))))
        (answer,) = served.predict(None, pixels[None])
        if answer["label"] != ("red", "green", "blue")[number % 3]:
            continue  # the evaluation's map is the true class's
        expected = normalised_map(shown[str(number)].numpy(), model.protocol, SIZES[number % 5 % 3])
        np.testing.assert_allclose(answer["map"], expected, atol=1e-5)
        compared += 1
    assert compared > 2
