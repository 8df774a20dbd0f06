"""CutMix: boxes and losses by hand, pasting against a loop, and when nothing is mixed."""

import math

import pytest
import torch

import wsol_models
from wsol_models import cutmix
from wsol_models._layers import Output

TARGETS = torch.tensor([0, 1, 2, 1])


def build(**options) -> cutmix.Method:
    torch.manual_seed(0)
    return wsol_models.build("cutmix", backbone="tiny", num_classes=3, **options)


def images() -> torch.Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("size", "share", "centre", "expected"),
    [
        (224, 0.75, 100, (44, 156)),  # √.25·224 = 112 px
        (224, 0.75, 10, (0, 66)),
        (224, 0.75, 220, (164, 224)),
        (10, 0.5, 5, (2, 8)),  # √.5·10 = 7.07: 7 px, of which an even number can be round a centre
        (224, 1.0, 7, (7, 7)),
        (224, 0.0, 112, (0, 224)),
    ],
)
def test_sides_of_a_box(size, share, centre, expected):
    found = cutmix.cut(size, share, centre)
    assert (found.start, found.stop) == expected


def test_paste():
    """A 2x3 box of 8x6 pixels from the partner: 1 - 6/48 stays."""
    batch, partners = torch.rand(3, 2, 8, 6), torch.tensor([2, 0, 1])
    mixed, share = cutmix.paste(batch, batch[partners][:, :, 3:5, 1:4], slice(3, 5), slice(1, 4))
    assert share == pytest.approx(0.875)
    for image, partner, result in zip(batch, batch[partners], mixed, strict=True):
        for row in range(8):
            for column in range(6):
                inside = row in (3, 4) and column in (1, 2, 3)
                assert torch.equal(result[:, row, column], (partner if inside else image)[:, row, column])


def test_losses_are_mixed_by_area():
    """Logits (1, 2), own class 0, patch's class 1, λ = .75: log(e + e²) - .75·1 - .25·2."""
    output = cutmix.MixedOutput(
        torch.tensor([[1.0, 2.0]]),
        torch.zeros(1, 1, 1, 1),
        targets=torch.tensor([0]),
        patch_targets=torch.tensor([1]),
        share=0.75,
    )
    assert cutmix.losses(output, cutmix.Config())["cls"].item() == pytest.approx(math.log(math.e + math.e**2) - 1.25)


def test_losses_of_several_classes():
    """Both images have logits (0, 0): log 2 whatever the classes."""
    logits, rows = torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    output = cutmix.MixedOutput(logits, torch.zeros(2, 1, 1, 1), targets=rows, patch_targets=rows.flip(0), share=0.3)
    assert cutmix.losses(output, cutmix.Config())["cls"].item() == pytest.approx(math.log(2))


def test_a_mixed_pass_is_cam_of_the_mixed_images(monkeypatch):
    method = build()
    monkeypatch.setattr(cutmix, "draw_box", lambda *_: (slice(4, 20), slice(0, 16)))
    torch.manual_seed(4)
    output = method(images(), TARGETS)
    torch.manual_seed(4)
    torch.rand(())
    partners = torch.randperm(4)
    mixed = images()
    mixed[:, :, 4:20, :16] = images()[partners][:, :, 4:20, :16]
    assert isinstance(output, cutmix.MixedOutput)
    assert torch.equal(output.patch_targets, TARGETS[partners])
    assert (output.share, output.targets) == (0.75, TARGETS)
    torch.testing.assert_close(output.logits_BK, method.eval()(mixed).logits_BK)


def test_the_drawn_box_has_the_drawn_area():
    """Where nothing is cut off, 1 - λ of the image but for rounding; λ of Beta(1, 1) is uniform."""
    torch.manual_seed(0)
    areas = []
    for _ in range(400):
        rows, columns = cutmix.draw_box(torch.zeros(1, 1, 40, 60), beta=1.0)
        assert 0 <= rows.start <= rows.stop <= 40
        assert 0 <= columns.start <= columns.stop <= 60
        if rows.start > 0 and rows.stop < 40 and columns.start > 0 and columns.stop < 60:
            height, width = rows.stop - rows.start, columns.stop - columns.start
            assert height / 40 == pytest.approx(width / 60, abs=2 / 40)
            areas.append(height * width / 2400)
    assert min(areas) < 0.05
    assert max(areas) > 0.5


def test_nothing_is_mixed_in_evaluation_or_by_the_batchs_draw():
    assert type(build().eval()(images(), TARGETS)) is Output
    assert type(build(probability=0.0)(images(), TARGETS)) is Output
    assert type(build()(images())) is Output
    method, mixed = build(probability=0.5), 0
    for step in range(40):
        torch.manual_seed(step)
        mixed += isinstance(method(images(), TARGETS), cutmix.MixedOutput)
    assert 10 < mixed < 30


def test_images_handed_in_stay_as_they_are():
    batch = images()
    build()(batch, TARGETS)
    assert torch.equal(batch, images())


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="beta must be a positive finite number but is 0"):
        cutmix.Config(beta=0.0)
    with pytest.raises(ValueError, match="probability must be between 0 and 1 but is -0.1"):
        cutmix.Config(probability=-0.1)
