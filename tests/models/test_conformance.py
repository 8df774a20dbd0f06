"""What holds for every method of the folder, on a tiny and on a real backbone, and for every readout it offers."""

import json
from dataclasses import FrozenInstanceError, fields, is_dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from wsol_models import build, method_module, methods
from wsol_models._backbones import LAYOUTS
from wsol_models._layers import LocalizationMethod
from wsol_models.readouts import readout, readouts

CLASSES = 4
TARGETS = torch.tensor([1, 3])
RAW_MAPS = ("mldfr",)  # own maps before any normalisation; all others are from 0 to 1
NO_BATCH_NORM = {"mldfr": {"bn": False}}  # options of methods that bring batch norm of their own
BATCH_WIDE = {
    "cutmix": "a batch's images are partners, which workers exchange",
    "spg": "means over the pixels that a batch's masks keep, of all workers",
    "dawsol": "memories advance from image to image",
}
CASES = [(name, backbone) for name in methods() for backbone in ("tiny", "resnet18")]


def make(name: str, backbone: str, **options) -> LocalizationMethod:
    torch.manual_seed(0)
    return build(name, backbone=backbone, num_classes=CLASSES, **options)


def images(size: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def terms_of(name: str, method: LocalizationMethod, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    """The loss terms of a training step with the same random draws each time."""
    torch.manual_seed(2)
    return method_module(name).losses(method(batch, TARGETS), method.config)


def hooks(module: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(child, kind)) for child in module.modules() for kind in kinds)


def offered(name: str, readout_name: str) -> bool:
    try:
        readout(readout_name).settings(make(name, "tiny").eval())
    except ValueError as error:
        if "methods that have" not in str(error):  # the only reason to refuse
            raise
        return False
    return True


READ = [(name, r) for name in methods() for r in readouts() if offered(name, r)]


def test_every_readout_serves_a_method_and_every_method_has_a_readout():
    assert {r for _, r in READ} == set(readouts())
    assert {name for name, _ in READ} == set(methods())


@pytest.mark.parametrize("name", methods())
def test_config_is_frozen_and_complete(name):
    config = method_module(name).Config()
    assert is_dataclass(config)
    assert config.layout in LAYOUTS
    with pytest.raises(FrozenInstanceError):
        setattr(config, fields(config)[0].name, None)


@pytest.mark.parametrize(("name", "backbone"), CASES)
def test_training_step(name, backbone):
    method = make(name, backbone)
    output = method(images(), TARGETS)
    assert output.logits_BK.shape == (2, CLASSES)
    assert output.targets is not None
    terms = method_module(name).losses(output, method.config)
    assert all(term.ndim == 0 and term.isfinite() and term.requires_grad for term in terms.values())
    sum(terms.values()).backward()
    for parameter_name, parameter in method.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name
        assert method.lr_scale(parameter_name) > 0


@pytest.mark.parametrize("targets", [TARGETS, torch.tensor([[1.0, 0, 1, 0], [0, 1, 1, 1]])], ids=["one", "several"])
@pytest.mark.parametrize("name", [name for name in methods() if name not in ("spg", "dawsol")])
def test_terms_of_each_image_have_the_terms_as_their_mean(name, targets):
    method, losses = make(name, "tiny").double(), method_module(name).losses
    output = method(images().double(), targets.double() if targets.ndim == 2 else targets)
    terms, of_images = losses(output, method.config), losses(output, method.config, reduction="none")
    assert terms.keys() == of_images.keys()
    for term in terms:
        assert of_images[term].shape == (2,)
        assert of_images[term][0] != of_images[term][1]
        torch.testing.assert_close(of_images[term].mean(), terms[term], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", methods())
def test_mixed_precision(name):
    """Under bfloat16 autocast the terms stay close to float32's."""
    method = make(name, "tiny")
    exact = terms_of(name, method, images())
    with torch.autocast("cpu", torch.bfloat16):
        terms = terms_of(name, method, images())
    sum(terms.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in method.parameters())
    for term in terms:
        torch.testing.assert_close(terms[term].float(), exact[term], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", methods())
def test_logits_and_terms_are_float32_under_autocast(name):
    """In bfloat16 scores of many classes tie, and a mean over a map is rounded to eight bits."""
    method = make(name, "tiny")
    with torch.autocast("cpu", torch.bfloat16):
        assert method(images(), TARGETS).logits_BK.dtype == torch.float32
        assert method.eval()(images()).logits_BK.dtype == torch.float32
        assert {term.dtype for term in terms_of(name, method.train(), images()).values()} == {torch.float32}


@pytest.mark.parametrize("name", methods())
def test_float64(name):
    """Every term is float64 from end to end: a part in float32 would leave its rounding in the gradients."""
    method = make(name, "tiny")
    rounded = terms_of(name, method, images())
    terms = terms_of(name, method.double(), images().double())
    sum(terms.values()).backward()
    for term in terms:
        assert terms[term].dtype == torch.float64
        torch.testing.assert_close(terms[term].float(), rounded[term], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", [name for name in methods() if name not in BATCH_WIDE])
@pytest.mark.parametrize("targets", [torch.tensor([1, 3, 0, 2]), torch.tensor([[1.0, 1, 0, 1]] * 4)])
def test_parts_of_a_batch_together_give_its_gradients(name, targets):
    """Three images here and one there, weighted by their numbers: draws are of an image's name or of the whole step.

    For the rest, and in the training loop, `tests/training/test_workers.py` starts workers.
    """
    method = make(name, "tiny", **NO_BATCH_NORM.get(name, {})).double()
    batch, ids = torch.cat([images(), images().flip(0) + 1]).double(), ["a", "b", "c", "d"]

    def gradients(rows: slice) -> torch.Tensor:
        torch.manual_seed(3)
        method.begin_step(0, ids[rows], len(ids))
        loss = sum(method_module(name).losses(method(batch[rows], targets[rows]), method.config).values())
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(method.parameters()))])

    whole, parts = gradients(slice(4)), (3 * gradients(slice(3)) + gradients(slice(3, 4))) / 4
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-9 * float(whole.abs().max()))


@pytest.mark.parametrize("name", methods())
def test_channels_last_changes_no_number(name):
    method, batch = make(name, "tiny").double(), images().double()
    expected = terms_of(name, method, batch)
    method = method.to(memory_format=torch.channels_last)
    terms = terms_of(name, method, batch.to(memory_format=torch.channels_last))
    for term in terms:
        torch.testing.assert_close(terms[term], expected[term], rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", methods())
def test_gpu(name):
    """The terms of a GPU are a CPU's, as draws are made on CPUs; tolerance of convolutions in TensorFloat-32."""
    method = make(name, "tiny")
    expected = terms_of(name, method, images())
    torch.manual_seed(2)
    output = method.cuda()(images().cuda(), TARGETS.cuda())
    terms = method_module(name).losses(output, method.config)
    sum(terms.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in method.parameters())
    for term in terms:
        torch.testing.assert_close(terms[term].cpu(), expected[term], rtol=0.01, atol=0.01)


@pytest.mark.parametrize("name", methods())
def test_learns(name):
    """Ten steps on two images lower the loss; in float64, so that rounding has no say."""
    method, batch = make(name, "tiny").double(), images().double()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.05)
    history = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = sum(method_module(name).losses(method(batch, TARGETS), method.config).values())
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.9 * history[0]


@pytest.mark.parametrize("name", methods())
def test_losses_without_targets_are_refused(name):
    method = make(name, "tiny")
    with pytest.raises(ValueError, match="targets"):
        method_module(name).losses(method(images()), method.config)


@pytest.mark.parametrize(("name", "backbone"), CASES)
def test_evaluation_is_deterministic_and_changes_nothing(name, backbone):
    method, batch = make(name, backbone).double().eval(), images().double()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    first, second = method(batch), method(batch)
    assert torch.equal(first.logits_BK, second.logits_BK)
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    alone = method(batch[:1])
    torch.testing.assert_close(alone.logits_BK, first.logits_BK[:1], rtol=1e-9, atol=1e-9)
    if first.maps_BKHW is not None:
        assert first.maps_BKHW.shape[:2] == (2, CLASSES)
        assert first.maps_BKHW.isfinite().all()
        if name not in RAW_MAPS:
            assert 0 <= first.maps_BKHW.min() <= first.maps_BKHW.max() <= 1


@pytest.mark.parametrize(("name", "backbone"), CASES)
def test_taps(name, backbone):
    method = make(name, backbone).eval()
    stage = {"tiny": "block3", "resnet18": "layer3"}[backbone]
    output = method(images(), taps=(stage,))
    assert list(output.taps) == [stage]
    gradient = torch.autograd.grad(output.logits_BK[:, 0].sum(), output.taps[stage])[0]
    assert gradient.any()
    with pytest.raises(ValueError, match="Unknown stage 'layer9'"):
        method(images(), taps=("layer9",))


@pytest.mark.parametrize(("name", "backbone"), CASES)
def test_saves_and_loads_without_pickle(tmp_path, name, backbone):
    method = make(name, backbone).eval()
    save_file(method.state_dict(), tmp_path / "model.safetensors")
    torch.manual_seed(9)
    other = build(name, backbone=backbone, num_classes=CLASSES).eval()
    assert not torch.equal(other(images()).logits_BK, method(images()).logits_BK)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(other(images()).logits_BK, method(images()).logits_BK)


@pytest.mark.parametrize(("name", "readout_name"), READ)
def test_readout(name, readout_name):
    method = make(name, "tiny").eval()
    reader = readout(readout_name)
    settings = reader.settings(method)
    assert json.loads(json.dumps(settings)) == settings
    assert len(set(settings)) == len(settings)
    handed = {"stored_BCHW": images()} if reader.needs_stored else {}
    found = list(reader.search(method, images(), TARGETS, **handed))
    assert [setting for setting, _ in found] == settings
    shared = list(reader.search(method, images(), TARGETS, method(images()), **handed))
    for (setting, maps), (_, maps_of_shared) in zip(found, shared, strict=True):
        assert maps.shape[:-2] == ((2, 2) if str(setting).endswith("/mask") else (2,))
        assert maps.shape[-2:] == (64, 64) or not reader.enlarges
        assert maps.dtype == torch.float32
        assert maps.isfinite().all()
        assert not maps.requires_grad
        assert torch.equal(maps, maps_of_shared)
        assert torch.equal(maps, reader.maps(method, images(), TARGETS, setting, **handed))
    assert hooks(method) == 0
    assert all(parameter.grad is None for parameter in method.parameters())


@pytest.mark.parametrize(("name", "readout_name"), READ)
def test_readout_in_mixed_precision(name, readout_name):
    """Maps stay float32 and finite."""
    method = make(name, "tiny").eval()
    with torch.autocast("cpu", torch.bfloat16):
        reader = readout(readout_name)
        handed = {"stored_BCHW": images()} if reader.needs_stored else {}
        found = list(reader.search(method, images(), TARGETS, **handed))
    for _, maps in found:
        assert maps.dtype == torch.float32
        assert maps.isfinite().all()


@pytest.mark.parametrize(("name", "readout_name"), READ)
def test_maps_of_a_float64_model_stay_float64(name, readout_name):
    method = make(name, "tiny").double().eval()
    reader = readout(readout_name)
    handed = {"stored_BCHW": images().double()} if reader.needs_stored else {}
    for setting, maps in reader.search(method, images().double(), TARGETS, **handed):
        assert maps.dtype == torch.float64, setting
