"""BAS: every loss term worked out by hand, where each one's gradient goes, and the detached second pass."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import wsol_models
from wsol_models import bas
from wsol_models._backbones import backbone

TARGETS = torch.tensor([1, 0])


def build(name: str = "tiny", seed: int = 0, **options) -> bas.Method:
    torch.manual_seed(seed)
    return wsol_models.build("bas", backbone=name, num_classes=3, head_width=8, **options)


def meta(name: str, **options) -> bas.Method:
    with torch.device("meta"):
        return build(name, **options)


def images(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


# --- the terms, by hand -----------------------------------------------------------------------------------------------


def test_suppression_is_the_share_that_the_background_keeps():
    """Targets 1 and 0: S = 4 and 2, S^b = 1 and 1; (1/4 + 1/2) / 2 = 0.375."""
    loss = bas.background_activation_suppression(
        torch.tensor([[9.0, 4.0], [2.0, 9.0]]), torch.tensor([[9.0, 1.0], [1.0, 9.0]]), TARGETS
    )
    assert loss.item() == pytest.approx(0.375)


@pytest.mark.parametrize(
    ("score", "background", "expected"),
    [
        (2.0, 3.0, 1.0),  # more than the whole: clamped
        (2.0, 2.0, 1.0),  # equal: the ratio itself
        (0.0, 0.5, 1.0),  # nothing to compare with, background above it: clamped, not 5e7
        (-1.0, 0.5, 1.0),  # a negative score counts as 0
        (-1.0, -2.0, 0.0),  # both clipped to 0
        (2.0, -1.0, 0.0),  # a negative background counts as 0
    ],
)
def test_suppression_clips_scores_and_clamps_the_ratio(score, background, expected):
    logits, masked = torch.tensor([[score, 0.0]]), torch.tensor([[background, 0.0]])
    loss = bas.background_activation_suppression(logits, masked, torch.tensor([0]))
    assert loss.item() == pytest.approx(expected)


def test_suppression_gradient():
    """d(S^b/S)/dS^b = 1/S = 1/4, halved by the mean; none to S, none where the ratio is clamped."""
    logits = torch.tensor([[4.0, 0.0], [1.0, 0.0]], requires_grad=True)
    masked = torch.tensor([[2.0, 0.0], [3.0, 0.0]], requires_grad=True)
    bas.background_activation_suppression(logits, masked, torch.tensor([0, 0])).backward()
    assert logits.grad is None
    torch.testing.assert_close(masked.grad, torch.tensor([[0.125, 0.0], [0.0, 0.0]]))


def test_suppression_survives_half_precision():
    """ε = 1e-8 is 0 in float16: 0/0 without a wider type."""
    zero = torch.zeros(1, 2, dtype=torch.float16)
    assert bas.background_activation_suppression(zero, zero, torch.tensor([0])).item() == 0


def test_area_is_the_mean_of_the_map():
    assert bas.area_constraint(torch.tensor([[[0.0, 1.0]], [[0.5, 0.5]]])).item() == 0.5


def test_guidance_pools_the_class_maps_over_the_map():
    """A 2x2 map of 1, 0, 0, 1 averages to 0.5 in the one cell of the class maps: logits 0.5·(2, 4) = (1, 2).

    CE of class 1 = log(e^1 + e^2) - 2 = log(1 + e^-1).
    """
    class_maps = torch.tensor([2.0, 4.0]).reshape(1, 2, 1, 1)
    foreground = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    loss = bas.foreground_region_guidance(class_maps, foreground, torch.tensor([1]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)))


def test_guidance_weighs_positions():
    """Maps on one grid: class 0 has (2, 0), class 1 (0, 6), foreground (1, 0): logits (1, 0), not (1, 3)."""
    class_maps = torch.tensor([[[[2.0, 0.0]], [[0.0, 6.0]]]])
    loss = bas.foreground_region_guidance(class_maps, torch.tensor([[[1.0, 0.0]]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)))


def test_the_scores_behind_guidance_are_the_class_maps_pooled_over_the_foreground():
    """score_2: (2·1 + 0·0.5) / 2 and (0·1 + 6·0.5) / 2; where sizes differ the map is averaged first, (1 + 0) / 2."""
    class_maps = torch.tensor([[[[2.0, 0.0]], [[0.0, 6.0]]]])
    assert bas.foreground_scores(class_maps, torch.tensor([[[1.0, 0.5]]])).tolist() == [[1.0, 1.5]]
    assert bas.foreground_scores(torch.full((1, 1, 1, 1), 8.0), torch.tensor([[[1.0, 0.0]]])).tolist() == [[4.0]]


def test_guidance_equals_pooling_two_by_two():
    """The papers' 28x28 map and 14x14 class maps."""
    torch.manual_seed(0)
    class_maps, foreground = torch.randn(2, 3, 14, 14), torch.rand(2, 28, 28)
    pooled = nn.AvgPool2d(2)(foreground[:, None])
    expected = F.cross_entropy((class_maps * pooled).mean((2, 3)), TARGETS)
    torch.testing.assert_close(bas.foreground_region_guidance(class_maps, foreground, TARGETS), expected)


def test_losses_are_weighted():
    """α 2, β 3, λ 5 times the terms of the examples above; L_cls of equal logits over two classes is log 2."""
    output = bas.TrainingOutput(
        logits_BK=torch.tensor([[2.0, 2.0]]),
        features_BCHW=torch.zeros(1, 1, 1, 1),
        targets=torch.tensor([1]),
        classes_B=torch.tensor([1]),
        class_maps_BKHW=torch.tensor([2.0, 4.0]).reshape(1, 2, 1, 1),
        foreground_BHW=torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]),
        background_logits_BK=torch.tensor([[9.0, 0.5]]),
    )
    terms = bas.losses(output, bas.Config(alpha=2, beta=3, lambda_=5))
    expected = {"cls": math.log(2), "frg": 2 * math.log(1 + math.exp(-1)), "area": 3 * 0.5, "bas": 5 * 0.25}
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected)


def test_several_classes_compete_with_the_absent_ones_only():
    """Logits 1, 2, 3 of which the first and the last are present: log(1 + e^(2-1)) + log(1 + e^(2-3)).

    The second image has all classes: 0. Mean over two images.
    """
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 5.0, 1.0]], requires_grad=True)
    loss = bas.multi_label_classification(logits, torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]))
    assert loss.item() == pytest.approx((math.log(1 + math.e) + math.log(1 + 1 / math.e)) / 2)
    loss.backward()
    expected = [-math.e / (1 + math.e), 1.0, -1 / (1 + math.e)]  # softmax of the pair (e^y_j, e^y_i); they sum up to 0
    torch.testing.assert_close(logits.grad, torch.tensor([expected, [0.0, 0.0, 0.0]]) / 2)


def test_losses_of_several_classes():
    """Logits 2, 2, 2 with the first two present: L_mcls = 2 log 2. The rest is of the drawn class, 1, alone.

    M_f is as large as the class maps, (1, 0): guidance logits are halves of 2, 4, 0, so CE = log(e + e^2 + 1) - 2.
    """
    class_maps = torch.tensor([[[[2.0, 9.0]], [[4.0, 9.0]], [[0.0, 9.0]]]], requires_grad=True)
    output = bas.TrainingOutput(
        logits_BK=torch.tensor([[2.0, 2.0, 2.0]]),
        features_BCHW=torch.zeros(1, 1, 1, 1),
        targets=torch.tensor([[1.0, 1.0, 0.0]]),
        classes_B=torch.tensor([1]),
        class_maps_BKHW=class_maps,
        foreground_BHW=torch.tensor([[[1.0, 0.0]]], requires_grad=True),
        background_logits_BK=torch.tensor([[9.0, 0.5, 9.0]]),
    )
    terms = bas.losses(output, bas.Config(alpha=2, beta=3, lambda_=5))
    guidance = math.log(math.e + math.e**2 + 1) - 2
    expected = {"cls": 2 * math.log(2), "frg": 2 * guidance, "area": 3 * 0.5, "bas": 5 * 0.25}
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected)
    terms["frg"].backward()
    assert class_maps.grad is None
    assert output.foreground_BHW.grad.any()


def test_the_drawn_class_is_a_present_one_and_each_is_drawn():
    torch.manual_seed(0)
    targets = torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]]).repeat(200, 1)
    drawn = build().one_class(targets).reshape(200, 2)
    assert set(drawn[:, 0].tolist()) == {1, 3}
    assert 70 < (drawn[:, 0] == 1).sum() < 130  # 100 expected, standard deviation 7
    assert (drawn[:, 1] == 2).all()
    assert build().one_class(TARGETS) is TARGETS


# --- the forward ------------------------------------------------------------------------------------------------------


def test_map_of_one_class_is_that_channel_of_the_convolution():
    torch.manual_seed(0)
    generator = nn.Conv2d(5, 4, 3, padding=1).double()
    features, classes = torch.randn(3, 5, 6, 7, dtype=torch.float64), torch.tensor([2, 0, 2])
    weight, bias = generator.weight, generator.bias
    direct = generator(features)[torch.arange(3), classes]
    torch.testing.assert_close(bas.convolution_of_class(features, weight, bias, classes), direct)
    ours = torch.autograd.grad(bas.convolution_of_class(features, weight, bias, classes).sin().sum(), (weight, bias))
    torch.testing.assert_close(ours, torch.autograd.grad(direct.sin().sum(), (weight, bias)))


def test_training_and_evaluation_agree_on_the_targets_map():
    method = build()
    training = method(images(), TARGETS)
    evaluation = method.eval()(images(), TARGETS)
    assert training.maps_BKHW is None
    torch.testing.assert_close(training.foreground_BHW, evaluation.maps_BKHW[[0, 1], TARGETS])
    torch.testing.assert_close(training.class_maps_BKHW.mean((2, 3)), evaluation.logits_BK)


def test_conference_form_has_no_negative_class_map():
    method = build(relu_class_maps=True)
    output = method(images(), TARGETS)
    assert output.class_maps_BKHW.min() == 0
    assert output.background_logits_BK.min() >= 0
    assert build()(images(), TARGETS).class_maps_BKHW.min() < 0


REACHED = {  # term -> modules that it trains
    "cls": {"F1", "F2", "classifier_cls"},
    "frg": {"F1", "F2", "classifier_cls", "classifier_loc"},
    "area": {"F1", "classifier_loc"},
    "bas": {"F1", "classifier_loc"},
}


def positive_scores(method: bas.Method) -> bas.Method:
    """Make every class map at least 1, so that S^b is not clipped at 0 and has a gradient."""
    nn.init.constant_(method.classifier_cls.get_parameter("maps.bias"), 1.0)
    with torch.no_grad():
        method.classifier_cls.get_parameter("maps.weight").abs_()
    return method


@pytest.mark.parametrize("term", REACHED)
@pytest.mark.parametrize("name", ["tiny", "resnet18"])
def test_where_the_gradient_of_a_term_goes(name, term):
    method = positive_scores(build(name))
    parameters = dict(method.named_parameters())
    output = method(images(64), TARGETS)
    output = replace(output, logits_BK=output.logits_BK + 10)  # S > S^b: no ratio is clamped; cross-entropy is the same
    loss = bas.losses(output, method.config)[term]
    gradients = torch.autograd.grad(loss, parameters.values(), allow_unused=True)
    reached = {n.split(".")[0] for n, g in zip(parameters, gradients, strict=True) if g is not None and g.any()}
    assert reached == REACHED[term]


def test_terms_of_weight_zero_keep_every_parameter_in_the_graph():
    method = build(alpha=0.0, beta=0.0, lambda_=0.0)
    terms = bas.losses(method(images(), TARGETS), method.config)
    assert [terms[name].item() for name in ("frg", "area", "bas")] == [0, 0, 0]
    sum(terms.values()).backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


def plain_background_logits(
    method: bas.Method, features: torch.Tensor, foreground: torch.Tensor, detach: bool = True
) -> torch.Tensor:
    """The oracle: frozen deep copies, as the papers' code has them."""
    copies = [copy.deepcopy(module).requires_grad_(False) for module in (method.F2, method.classifier_cls)]
    deep, _ = copies[0]((features.detach() if detach else features) * (1 - foreground[:, None]))
    class_maps = copies[1](deep)[1]
    return (class_maps.relu() if method.config.relu_class_maps else class_maps).mean((2, 3))


@pytest.mark.parametrize("name", ["tiny", "resnet18", "mobilenet_v1", "mobilenet_v2", "vgg16", "inception_v3"])
def test_second_pass_equals_frozen_copies(name):
    method = positive_scores(build(name, relu_class_maps=name == "inception_v3")).double()
    x = images(64).double()
    output = method(x, TARGETS)
    features = method.F1(x)[0]
    foreground = torch.sigmoid(method.classifier_loc(features))[[0, 1], TARGETS]
    expected = plain_background_logits(method, features, foreground)
    torch.testing.assert_close(output.background_logits_BK, expected, rtol=0, atol=1e-6)
    parameters = [*method.F1.parameters(), *method.classifier_loc.parameters()]
    ours = torch.autograd.grad(output.background_logits_BK.sum(), parameters)
    theirs = torch.autograd.grad(expected.sum(), parameters)
    for gradient, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-6, atol=1e-6)


def test_running_statistics_move_once_and_by_the_whole_features():
    """The masked pass leaves them alone: they end as after a plain pass of the first stages and F2."""
    method = build("resnet18")
    plain = copy.deepcopy(method)
    method(images(64), TARGETS)
    plain.F2(plain.F1(images(64))[0])
    for (name, ours), theirs in zip(method.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs), name
    assert method.F2.layer4[1].bn1.num_batches_tracked == 1


def test_masked_pass_normalises_with_its_own_batch_statistics():
    """With a constant map of 0.5 the masked features are F/2; batch statistics remove the scale, stored ones do not."""
    method = build("resnet18")
    nn.init.zeros_(method.classifier_loc.weight)
    output = method(images(64), TARGETS)
    torch.testing.assert_close(output.background_logits_BK, output.logits_BK, rtol=1e-3, atol=1e-4)
    frozen = build("resnet18", frozen_batch_norm=True)
    nn.init.zeros_(frozen.classifier_loc.weight)
    output = frozen(images(64), TARGETS)
    assert not torch.allclose(output.background_logits_BK, output.logits_BK, rtol=1e-2)


def test_masking_the_image_equals_frozen_copies_of_the_whole_network():
    method = positive_scores(build("resnet18", mask="image")).double()
    x = images(64).double()
    output = method(x, TARGETS)
    foreground = torch.sigmoid(method.classifier_loc(method.F1(x)[0]))[[0, 1], TARGETS]
    left = nn.Upsample(size=64, mode="bilinear", align_corners=False)(1 - foreground[:, None])
    features = copy.deepcopy(method.F1).requires_grad_(False)(x * left)[0]
    expected = plain_background_logits(method, features, torch.zeros_like(foreground), detach=False)
    torch.testing.assert_close(output.background_logits_BK, expected, rtol=0, atol=1e-6)
    parameters = [*method.F1.parameters(), *method.classifier_loc.parameters()]
    ours = torch.autograd.grad(output.background_logits_BK.sum(), parameters)
    for gradient, other in zip(ours, torch.autograd.grad(expected.sum(), parameters), strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-6, atol=1e-6)
    heads = [*method.F2.parameters(), *method.classifier_cls.parameters()]
    loss = method(x, TARGETS).background_logits_BK.sum()
    assert not any(g is not None for g in torch.autograd.grad(loss, heads, allow_unused=True))


# --- images of several classes ----------------------------------------------------------------------------------------

SEVERAL = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])


def test_network_for_segmentation_seeds():
    """ResNet50: layer3 halves, nothing after it does; heads without bias, 1x1 and 3x3; maps 28x28 at 448 px."""
    method = meta("resnet50", segmentation=True).eval()
    output = method(torch.empty(1, 3, 448, 448, device="meta"))
    assert output.maps_BKHW.shape == (1, 3, 28, 28)
    assert output.features_BCHW.shape == (1, 2048, 28, 28)
    assert method.F1.names[-1] == "layer3"
    heads = {name: p.shape for name, p in method.named_parameters() if "classifier" in name}
    assert heads == {"classifier_loc.weight": (3, 1024, 3, 3), "classifier_cls.maps.weight": (3, 2048, 1, 1)}


@pytest.mark.parametrize("segmentation", [False, True])
def test_a_step_on_several_classes(segmentation):
    torch.manual_seed(3)
    method = build("resnet18", segmentation=segmentation)
    output = method(images(64), SEVERAL)
    assert output.targets is SEVERAL
    assert output.classes_B[0] in (1, 2)
    assert output.classes_B[1] == 0
    maps = torch.sigmoid(method.classifier_loc(method.F1(images(64))[0]))
    assert output.foreground_BHW.shape == maps.shape[:1] + maps.shape[2:]
    terms = bas.losses(output, method.config)
    assert all(term.isfinite() for term in terms.values())
    classifier = [*method.F2.parameters(), *method.classifier_cls.parameters()]
    assert not any(
        g is not None for g in torch.autograd.grad(terms["frg"], classifier, allow_unused=True, retain_graph=True)
    )
    sum(terms.values()).backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_one_class_each_as_rows_gives_the_same_maps_and_suppression():
    torch.manual_seed(0)
    method = build()
    single, rows = method(images(), TARGETS), method(images(), F.one_hot(TARGETS, 3).float())
    assert torch.equal(rows.classes_B, TARGETS)
    ours, theirs = bas.losses(rows, method.config), bas.losses(single, method.config)
    for term in ("frg", "area", "bas"):
        torch.testing.assert_close(ours[term], theirs[term])
    # with one class present, L_mcls is the cross-entropy
    torch.testing.assert_close(ours["cls"], theirs["cls"])


# --- the generator's position -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "resnet18", "resnet50", "mobilenet_v2"])
def test_generator_runs_after_every_stage(name):
    whole = backbone(name, "late")
    for stage in whole.names:
        method = bas.Method(bas.Config(generator_after=stage, head_width=8), whole, 3)
        output = method(images(64), TARGETS)
        assert output.foreground_BHW.shape[-1] == 64 // whole.stages[stage].stride
        assert all(term.isfinite() for term in bas.losses(output, method.config).values())


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("tiny", "block3"),
        ("resnet18", "layer3"),
        ("resnet50", "layer3"),
        ("vgg16", "relu4_3"),
        ("inception_v3", "Mixed_6e"),
        ("mobilenet_v1", "block11"),
        ("mobilenet_v2", "features13"),
    ],
)
def test_default_position_is_before_the_last_halving(name, stage):
    method = meta(name)
    assert method.F1.names[-1] == stage
    assert method.F1.last.stride * 2 == method.F2.last.stride


@pytest.mark.parametrize("stage", ["relu3_3", "relu5_3"])
def test_positions_of_the_conference_ablation(stage):
    """VGG16: F is 56x56 or 14x14, the class maps stay 14x14."""
    method = meta("vgg16", generator_after=stage)
    output = method(torch.empty(1, 3, 224, 224, device="meta"), torch.zeros(1, dtype=torch.int64, device="meta"))
    assert output.foreground_BHW.shape[1:] == {"relu3_3": (56, 56), "relu5_3": (14, 14)}[stage]
    assert output.class_maps_BKHW.shape[2:] == (14, 14)


def test_resnet_pools_before_layer4():
    """Methods' table: max_pool2d(2), then layer4 at stride 1."""
    layer4 = backbone("resnet50", "late").get_submodule("layer4")
    assert isinstance(layer4[0], nn.MaxPool2d)
    assert layer4[0].kernel_size == 2
    assert layer4[1].conv2.stride == layer4[1].downsample[0].stride == (1, 1)


# --- recipe and errors ------------------------------------------------------------------------------------------------


def test_learning_rate_groups():
    method = build("resnet18")
    scales = {name: method.lr_scale(name) for name, _ in method.named_parameters()}
    assert scales["F1.layer1.0.conv1.weight"] == scales["F1.layer1.0.bn1.weight"] == 1
    assert scales["F1.layer1.0.bn1.bias"] == scales["F2.layer4.1.bn1.bias"] == 2
    assert scales["classifier_loc.weight"] == scales["classifier_cls.maps.weight"] == 10
    assert scales["classifier_loc.bias"] == scales["classifier_cls.hidden1.bias"] == 20


def test_heads_start_as_in_the_papers():
    method = build("resnet18")
    assert not method.classifier_loc.bias.any()
    limit = math.sqrt(6 / (9 * 256 + 9 * 3))  # Xavier-uniform of 256 -> 3 channels, 3x3
    assert 0.99 * limit < method.classifier_loc.weight.abs().max() <= limit


def test_heads_of_vgg_start_normal_with_random_biases():
    torch.manual_seed(0)
    head = bas.classifier(512, 1024, 3)
    biases = head.get_parameter("hidden1.bias").clone()
    bas.initialise(head, "vgg")
    assert head.get_parameter("hidden1.weight").std().item() == pytest.approx(0.02, rel=0.01)
    assert torch.equal(head.get_parameter("hidden1.bias"), biases)
    assert biases.all()


def test_bias_rate_of_the_segmentation_recipe():
    method = build(segmentation=True, bias_lr_scale=1.0, head_lr_scale=10.0)
    assert {method.lr_scale(name) for name, _ in method.named_parameters()} == {1.0, 10.0}


def test_losses_need_a_training_pass():
    method = build()
    for output in (method(images()), method.eval()(images(), TARGETS)):
        with pytest.raises(ValueError, match="BAS losses need a forward in training mode with targets"):
            bas.losses(output, method.config)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"alpha": -0.1}, "alpha must be a finite number >= 0 but is -0.1"),
        ({"lambda_": float("nan")}, "lambda_ must be a finite number >= 0 but is nan"),
        ({"beta": float("inf")}, "beta must be a finite number >= 0 but is inf"),
        ({"head_width": 0}, "head_width must be at least 1 but is 0"),
        ({"bias_lr_scale": -1}, "bias_lr_scale must be a finite number >= 0 but is -1"),
        ({"mask": "picture"}, "Unknown value of mask 'picture'. Known: features, image."),
    ],
)
def test_config_refuses(option, message):
    with pytest.raises(ValueError, match=message):
        replace(bas.Config(), **option)


def test_unknown_stage_is_answered_with_the_known():
    with pytest.raises(ValueError, match=r"Unknown stage 'layer3'\. .*Known: block1, block2, block3, block4\."):
        build(generator_after="layer3")


@pytest.mark.parametrize("targets", [torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2), torch.zeros(3).long()])
def test_targets_are_class_indices_or_rows(targets):
    with pytest.raises(ValueError, match="Targets must be one int64 class index per image"):
        build()(images(), targets)


def test_an_image_of_no_class_is_refused():
    with pytest.raises(ValueError, match="Every image must be of at least one class"):
        build()(images(), torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize(("side", "size"), [(28, (14, 14)), (14, (14, 14)), (7, (3, 3)), (7, (3, 5))])
def test_a_cell_of_the_smaller_map_is_the_mean_of_what_it_covers(side, size):
    maps = torch.rand(2, 1, side, side, dtype=torch.float64)
    torch.testing.assert_close(bas.averaged(maps, size), F.adaptive_avg_pool2d(maps, size))
