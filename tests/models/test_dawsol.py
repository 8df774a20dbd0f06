"""DA-WSOL: k-means against scikit-learn, discrepancy against loops, the sampler's memories, and when it begins."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from sklearn.cluster import KMeans

import wsol_models
from wsol_models import dawsol

TARGETS = torch.tensor([2, 0])


def build(**options) -> dawsol.Method:
    torch.manual_seed(0)
    return wsol_models.build("dawsol", backbone="tiny", num_classes=3, **options)


def images(size: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def drawn(seed: int, *size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def starts(kind: str, points: torch.Tensor) -> torch.Tensor:
    if kind == "points":
        return points[:3]
    mean = points.mean(0)
    if kind == "equal":  # an image of a new class: the second of two equal centres gets no point
        return torch.stack([torch.zeros_like(mean), mean, mean])
    return torch.stack([mean + 100, mean, mean - 100])  # two centres without points


@pytest.mark.parametrize("kind", ["points", "equal", "far"])
@pytest.mark.parametrize("seed", range(6))
def test_k_means_against_scikit_learn(kind, seed):
    points = drawn(seed, 150, 8).relu() + (drawn(seed + 50, 150, 1) > 0.3) * 2 * drawn(seed + 100, 8)
    reference = KMeans(3, init=starts(kind, points).numpy(), n_init=1).fit(points.numpy())
    clusters, centres = dawsol.k_means(points, starts(kind, points))
    np.testing.assert_array_equal(clusters.numpy(), reference.labels_)
    np.testing.assert_allclose(centres.numpy(), reference.cluster_centers_, rtol=1e-4, atol=1e-5)


def test_k_means_of_equal_points():
    clusters, centres = dawsol.k_means(torch.ones(5, 2), torch.zeros(3, 2))
    assert clusters.tolist() == [0] * 5
    assert centres.tolist() == [[1.0, 1.0]] * 3


def discrepancy_by_loops(source: np.ndarray, target: np.ndarray) -> float:
    both, total, samples = np.concatenate([source, target]), 0.0, len(source)
    squares = np.array([[((a - b) ** 2).sum() for b in both] for a in both])
    base = squares.sum() / (len(both) ** 2 - len(both)) / 4
    kernels = sum(np.exp(-squares / (base * 2**i)) for i in range(5))
    for i in range(samples):
        j = (i + 1) % samples
        total += kernels[i, j] + kernels[samples + i, samples + j]
        total -= kernels[i, samples + j] + kernels[j, samples + i]
    return total / samples


def test_discrepancy_against_loops():
    source, target = drawn(1, 2, 32, 5), drawn(2, 2, 32, 5) * 2 + 1
    expected = np.mean([discrepancy_by_loops(s, t) for s, t in zip(source.numpy(), target.numpy(), strict=True)])
    assert expected > 0.5
    assert dawsol.discrepancy(source, target).item() == pytest.approx(expected, rel=1e-5)


def test_discrepancy_by_hand():
    """Samples 0, 0 against 1, 1: squares 0 within and 1 across, 8 of 12 ordered pairs, so the mean is 2/3.

    Two pairs, each 5 + 5 - 2·Σ_w exp(-1.5/w)."""
    across = sum(math.exp(-1.5 / width) for width in (0.25, 0.5, 1, 2, 4))
    found = dawsol.discrepancy(torch.zeros(1, 2, 1), torch.ones(1, 2, 1))
    assert found.item() == pytest.approx(10 - 2 * across)


def test_the_bandwidth_is_a_constant_for_gradients():
    """Scaling both domains changes no kernel; with a constant bandwidth the gradient along that scale is not zero."""
    scale = torch.tensor(1.0, requires_grad=True)
    source, target = drawn(1, 1, 32, 5), drawn(2, 1, 32, 5) + 1
    value = dawsol.discrepancy(scale * source, scale * target)
    torch.testing.assert_close(dawsol.discrepancy(3 * source, 3 * target), value.detach())
    assert torch.autograd.grad(value, scale)[0].abs() > 1e-3


def test_several_sets_of_points_end_each_by_itself():
    points = torch.stack([drawn(seed, 150, 8).relu() for seed in range(6)])
    begin = torch.stack([starts(kind, of) for kind, of in zip(["points", "equal", "far"] * 2, points, strict=True)])
    clusters, centres = dawsol.k_means(points, begin)
    for alone, *together in zip(zip(points, begin, strict=True), clusters, centres, strict=True):
        for one, of_all in zip(dawsol.k_means(*alone), together, strict=True):
            torch.testing.assert_close(of_all, one)


def test_a_memory_is_a_mean():
    mean, count = torch.zeros(1, 1), torch.zeros(1, 1)
    for values in ([4.0], [1.0, 9.0, 7.0]):
        parts = torch.tensor([[value != 9.0 for value in values]])
        mean, count = dawsol.extended(mean, count, parts, torch.tensor(values)[:, None])
    assert (mean.item(), count.item()) == (4.0, 3.0)


def groups(background: int, source: int, target: int) -> torch.Tensor:
    """Positions of one image in two channels round (0, 0), (4, 4) and (0, 20), far apart."""
    centres = torch.tensor([[0.0, 0.0]] * background + [[4.0, 4.0]] * source + [[0.0, 20.0]] * target)
    return centres + 0.1 * drawn(5, len(centres), 2)


def sampler() -> dawsol.Sampler:
    """It knows target centres of class 1 near (0, 20)."""
    found = dawsol.Sampler(2, 2)
    found.classes_KC[1], found.counts_K[1] = torch.tensor([0.0, 19.0]), 1
    return found


def test_samples_of_one_image():
    torch.manual_seed(0)
    points, found = groups(60, 40, 50), sampler()
    samples = found(points[None], torch.tensor([1]))
    assert samples.source_ISC.shape == samples.target_ISC.shape == (1, 32, 2)
    torch.testing.assert_close(samples.source_ISC[0, 0], points.mean(0))
    rows = {tuple(point) for point in points[60:100].tolist()}
    assert len({tuple(point) for point in samples.source_ISC[0, 1:].tolist()} & rows) == 31
    rows = {tuple(point) for point in points[100:].tolist()}
    assert len({tuple(point) for point in samples.target_ISC[0].tolist()} & rows) == 32
    torch.testing.assert_close(samples.universum_UC, points[:60])


def test_memories_advance_from_image_to_image():
    """Class 1 knew (0, 19) and learns the target's centre; class 0 starts from its first image's feature."""
    points, found = groups(60, 40, 50), sampler()
    found(points[None], torch.tensor([1]))
    torch.testing.assert_close(found.classes_KC[1], (torch.tensor([0.0, 19.0]) + points[100:].mean(0)) / 2)
    torch.testing.assert_close(found.universum_C, points[:60].mean(0))
    assert (found.counts_K.tolist(), found.universum_count.item()) == ([0.0, 2.0], 1.0)
    found(points[None], torch.tensor([0]))
    assert found.counts_K.tolist() == [2.0, 2.0]


def one_after_the_other(points: np.ndarray, classes: list[int], known: dawsol.Sampler) -> tuple[list, list, list]:
    """Clusters, and the memories of universum and classes as lists of values, by scikit-learn and plain means."""
    universum, of_class, clusters = [], {1: [known.classes_KC[1].numpy().copy()]}, []
    for image, label in zip(points, classes, strict=True):
        memory = of_class.setdefault(label, [image.mean(0)])
        begin = [np.mean(universum, 0) if universum else np.zeros(2), image.mean(0), np.mean(memory, 0)]
        fitted = KMeans(3, init=np.stack(begin), n_init=1).fit(image)
        clusters.append(fitted.labels_)
        universum.append(fitted.cluster_centers_[0])
        memory.append(fitted.cluster_centers_[2])
    return clusters, universum, [of_class[label] for label in (0, 1)]


def test_all_images_at_once_are_clustered_as_one_after_the_other():
    """Of classes that are new, known, and there twice, beside an empty memory: where the first ones end decides where
    the next ones begin, and with it what they find."""
    points, classes = 5 * drawn(7, 6, 90, 2).double(), [0, 1, 0, 1, 1, 0]
    together, apart = sampler().double(), sampler().double()
    clusters, universum, of_class = one_after_the_other(points.numpy(), classes, together)
    found = together.assign(points, torch.tensor(classes))
    np.testing.assert_array_equal(found.numpy(), clusters)
    np.testing.assert_allclose(together.universum_C, np.mean(universum, 0))
    np.testing.assert_allclose(together.classes_KC, [np.mean(of, 0) for of in of_class])
    assert together.counts_K.tolist() == [len(of) for of in of_class] == [4, 4]
    assert together.universum_count == 6
    images = list(zip(points, classes, strict=True))
    assert torch.equal(torch.cat([apart.assign(image[None], torch.tensor([label])) for image, label in images]), found)
    torch.testing.assert_close(apart.state_dict(), together.state_dict())
    alone = [sampler().double().assign(image[None], torch.tensor([label])) for image, label in images]
    assert not torch.equal(torch.cat(alone), found)


@pytest.mark.parametrize("sizes", [(60, 30, 50), (60, 40, 31)])
def test_images_with_too_few_samples_are_left_out_but_remembered(sizes):
    found = sampler()
    samples = found(torch.stack([groups(*sizes)]), torch.tensor([1]))
    assert len(samples.source_ISC) == len(samples.target_ISC) == 0
    assert len(samples.universum_UC) == 60
    assert found.universum_count == 1
    assert dawsol.discrepancy(samples.source_ISC, samples.target_ISC) == 0


def output_of(samples: dawsol.Samples, domain: torch.Tensor | None = None) -> dawsol.AdaptionOutput:
    return dawsol.AdaptionOutput(
        torch.zeros(1, 2), torch.zeros(1, 1, 1, 1), targets=torch.tensor([0]), samples=samples, domain_IS=domain
    )


def test_terms_are_weighted():
    """Universum of means 1 and 3 over two channels each: 2."""
    samples = dawsol.Samples(torch.zeros(1, 2, 1), torch.ones(1, 2, 1), torch.tensor([[0.0, 2.0], [3.0, 3.0]]))
    terms = dawsol.losses(output_of(samples), dawsol.Config(beta=0.5, universum=0.25))
    assert terms["cls"].item() == pytest.approx(math.log(2))
    assert terms["uda"] == 0.5 * dawsol.discrepancy(samples.source_ISC, samples.target_ISC)
    assert terms["universum"].item() == 0.5


def test_domain_confusion_by_hand():
    """A source sample of logit 0 and a target one of logit 1: (log 2 + log(1 + 1/e)) / 2."""
    found = dawsol.domain_confusion(torch.tensor([[0.0, 1.0]]))
    assert found.item() == pytest.approx((math.log(2) + math.log(1 + 1 / math.e)) / 2)


def test_terms_begin_in_the_second_epoch():
    method = build()
    terms = dawsol.losses(method(images(), TARGETS), method.config)
    assert (terms["uda"], terms["universum"]) == (0, 0)
    assert method.sampler.universum_count == 0
    method.begin_step(1, ["a", "b"], 2)
    terms = dawsol.losses(method(images(), TARGETS), method.config)
    assert terms["universum"] > 0
    assert method.sampler.counts_K.tolist() == [2.0, 0.0, 2.0]  # an image's feature and a centre each
    method.eval()(images())
    assert method.sampler.universum_count == 2


@pytest.mark.parametrize("uda", ["mmd", "dann"])
@pytest.mark.parametrize("term", ["uda", "universum"])
def test_both_terms_train_the_network_and_not_the_head(uda, term):
    """At 128 px an image has 1024 positions, enough of every kind once the memories know a step."""
    method, batch = build(uda=uda, first_epoch=0), images(128)
    method(batch, TARGETS)
    output = method(batch, TARGETS)
    assert len(output.samples.source_ISC) == 2
    terms = dawsol.losses(output, method.config)
    assert terms[term] > 0
    terms[term].backward()
    assert method.fc.weight.grad is None
    assert all(p.grad.any() for name, p in method.named_parameters() if name.startswith("backbone."))


def test_an_adversarys_gradient_is_reversed():
    """The discriminator learns to tell the domains apart, the features to make it wrong."""
    method = build(uda="dann", first_epoch=0)
    source, target = drawn(1, 1, 32, 64).requires_grad_(), drawn(2, 1, 32, 64)
    samples = dawsol.Samples(source, target, target[0])
    dawsol.domain_confusion(method._domains(samples)).backward()
    straight = source.detach().clone().requires_grad_()
    logits = method.discriminator(torch.cat([straight, target], 1))[..., 0]
    (expected,) = torch.autograd.grad(dawsol.domain_confusion(logits), straight)
    torch.testing.assert_close(source.grad, -expected)
    assert method.discriminator.weight.grad.any()


def test_every_parameter_of_an_adversary_is_met_before_it_begins():
    method = build(uda="dann")
    sum(dawsol.losses(method(images(), TARGETS), method.config).values()).backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_memories_are_saved():
    method = build(first_epoch=0)
    method(images(), TARGETS)
    other = build()
    other.load_state_dict(load(save(method.state_dict())))
    assert torch.equal(other.sampler.classes_KC, method.sampler.classes_KC)
    assert other.sampler.universum_count == 2


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match=r"Unknown value of uda 'mdd'. Did you mean 'mmd'\? Known: dann, mmd"):
        dawsol.Config(uda="mdd")
    with pytest.raises(ValueError, match="universum must be a finite number >= 0 but is -1"):
        dawsol.Config(universum=-1.0)
