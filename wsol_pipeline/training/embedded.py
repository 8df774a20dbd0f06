"""The embedded dataset: generated on first use, so that every job runs without a download."""

import dataclasses
from pathlib import Path

from wsol_pipeline.data.dataset import Dataset, open_dataset
from wsol_pipeline.data.importers import synthetic
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.storage import Store


def embedded_dataset(store: Store) -> Dataset:
    """The synthetic dataset below `store`, generated if it is not there yet; as `import_dataset.py` without options."""
    options, out = synthetic.Options(), store / "data/synthetic"
    origin = {"importer": "synthetic", "source": "", "options": dataclasses.asdict(options), "shard_mb": 128}
    import_dataset(synthetic.read(Path(), options), out, name="synthetic", origin=origin)
    return open_dataset(out.uri)
