"""What all trials on the embedded data begin with."""

from pathlib import Path

import torch

from wsol_pipeline.storage import Store
from wsol_pipeline.training import embedded, loop
from wsol_pipeline.training.build import build_method


def test_last_bits_do_not_change_the_start(dataset, tmp_path, monkeypatch):
    """A disturbance of all weights, a thousand times that of another order of sums, is gone when it ends."""

    def disturbed(*args):
        method = build_method(*args)
        with torch.no_grad():
            for parameter in method.parameters():
                parameter *= 1 + 1e-13 * torch.randn_like(parameter)
        return method

    usual = embedded.embedded_weights(Store.at(tmp_path / "usual"), dataset, lambda record: None)
    monkeypatch.setattr(loop, "build_method", disturbed)
    other = embedded.embedded_weights(Store.at(tmp_path / "other"), dataset, lambda record: None)
    assert Path(usual).read_bytes() == Path(other).read_bytes()
