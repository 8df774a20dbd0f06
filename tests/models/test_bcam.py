"""B-CAM: every term worked out by hand, the forward against a literal one, where each term's gradient goes."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import wsol_models
from wsol_models import bcam
from wsol_models._backbones import BACKBONES, backbone

TARGETS = torch.tensor([1, 0])
LN2, LN3 = math.log(2), math.log(3)


def build(name: str = "tiny", seed: int = 0, **options) -> bcam.Method:
    torch.manual_seed(seed)
    return wsol_models.build("bcam", backbone=name, **{"num_classes": 3, "heads": 4, **options})


def images(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


# --- the terms, by hand -----------------------------------------------------------------------------------------------


def output_of(targets: torch.Tensor, labels: torch.Tensor) -> bcam.StaggeredOutput:
    scores = [[0.0, 0.0], [0.0, LN3], [LN3, 0.0], [0.0, LN3]]
    s_o, s_b, b_o, b_b = (torch.tensor([score]) for score in scores)
    features = torch.zeros(1, 1, 1, 1)
    return bcam.StaggeredOutput(s_o, features, targets=targets, s_b_BK=s_b, b_o_BK=b_o, b_b_BK=b_b, labels_BK=labels)


def test_terms_of_one_class():
    """σ(0) = 1/2 and σ(ln 3) = 3/4, y = class 1 of two, λ = 2, 3, 4, 5.

    s^o (0, 0): cross-entropy ln 2. s^b (0, ln 3) towards (0, 0): (ln 2 + ln 4) / 2. b^o (ln 3, 0) towards (1, 0):
    (ln 4/3 + ln 2) / 2. b^b (0, ln 3) towards (1, 1): (ln 2 + ln 4/3) / 2.
    """
    config = bcam.Config(lambda1=2, lambda2=3, lambda3=4, lambda4=5)
    terms = bcam.losses(output_of(torch.tensor([1]), torch.tensor([[0.0, 1.0]])), config)
    half = (LN2 + math.log(4 / 3)) / 2
    expected = {"s_o": 2 * LN2, "s_b": 3 * 1.5 * LN2, "b_o": 4 * half, "b_b": 5 * half}
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected)


def test_terms_of_several_classes():
    """Both classes present: s^o (0, 0) towards (1, 1) is ln 2 by the soft margin; b^o (ln 3, 0) towards (0, 0)."""
    both = torch.tensor([[1.0, 1.0]])
    terms = bcam.losses(output_of(both, both), bcam.Config())
    assert terms["s_o"].item() == pytest.approx(LN2)
    assert terms["b_o"].item() == pytest.approx((math.log(4) + LN2) / 2)


def test_soft_labels_change_the_first_and_third_term():
    """Labels (1/4, 3/4): cross-entropy of (0, 0) is ln 2 for any label; b^o (ln 3, 0) towards (3/4, 1/4) is
    (3/4 ln 4/3 + 1/4 ln 4 + ln 2) / 2."""
    terms = bcam.losses(output_of(torch.tensor([1]), torch.tensor([[0.25, 0.75]])), bcam.Config())
    assert terms["s_o"].item() == pytest.approx(LN2)
    assert terms["b_o"].item() == pytest.approx((0.75 * math.log(4 / 3) + 0.25 * math.log(4) + LN2) / 2)


def test_attention_is_a_softmax_over_positions():
    """Heads (0, ln 3) and (0, 0): (1/4, 3/4) and (1/2, 1/2)."""
    scores = torch.tensor([[[0.0, LN3]], [[0.0, 0.0]]])
    torch.testing.assert_close(bcam.attention(scores), torch.tensor([[[0.25, 0.75]], [[0.5, 0.5]]]))


def test_features_are_means_over_heads():
    """Z = (8, 16): the object's heads give 2 + 12 = 14 and 4 + 8 = 12, mean 13; the background's 8 and 8."""
    attention = torch.tensor([[[[[0.25, 0.75]], [[0.5, 0.5]]], [[[1.0, 0.0]], [[1.0, 0.0]]]]])
    assert bcam.aggregate(torch.tensor([[[[8.0, 16.0]]]]), attention).tolist() == [[[13.0, 8.0]]]


def test_soft_labels_by_hand():
    """Odds 8, 4, 2, 1, 1: the best two are 8 and 4; the true class comes in where it is none of them."""
    logits = torch.tensor([[8.0, 4, 2, 1, 1]]).log().expand(2, 5)
    labels = bcam.soft_labels(logits, torch.tensor([0, 3]), k=2)
    torch.testing.assert_close(
        labels, torch.tensor([[8, 4, 0, 0, 0], [8, 4, 0, 1, 0]]) / torch.tensor([[12.0], [13.0]])
    )


# --- the forward ------------------------------------------------------------------------------------------------------


def literal_scores(method: bcam.Method, features: torch.Tensor, attended: torch.Tensor) -> dict[str, list]:
    """The oracle: one image, head and position at a time; the background classifier is given a constant Z."""
    scores = {"s_o": [], "s_b": [], "b_o": [], "b_b": []}
    for Z, X in zip(features.flatten(2), attended.flatten(2), strict=True):
        for of, aggregator in (("o", method.aggregator_A), ("b", method.aggregator_B)):
            for by, classifier, values in (("s", method.classifier_A, Z), ("b", method.classifier_B, Z.data)):
                z = 0
                for m, head in enumerate(aggregator.weight.flatten(1)):
                    score = head @ X + (0 if aggregator.bias is None else aggregator.bias[m])
                    odds = score.exp()
                    z = z + sum(odds[i] / odds.sum() * values[:, i] for i in range(Z.shape[1])) / method.config.heads
                scores[f"{by}_{of}"].append(classifier.weight.flatten(1) @ z + classifier.bias)
    return {name: torch.stack(rows) for name, rows in scores.items()}


@pytest.mark.parametrize(("name", "size"), [("tiny", 16), ("resnet18", 32), ("vgg16", 32), ("inception_v3", 32)])
def test_forward_equals_the_literal_one(name, size):
    method = build(name, aggregator_init="xavier", large=False).double().eval()
    with torch.no_grad():
        for aggregator in (method.aggregator_A, method.aggregator_B):
            if aggregator.bias is not None:
                aggregator.bias.normal_()
    output = method(images(size).double(), TARGETS)
    features, taps = method.backbone(images(size).double(), (method.attention_stage,))
    expected = literal_scores(method, features, taps[method.attention_stage])
    parameters = dict(method.named_parameters())
    for term, score in output.scores.items():
        torch.testing.assert_close(score, expected[term])
        found, wanted = (
            torch.autograd.grad(values.sin().sum(), parameters.values(), retain_graph=True, materialize_grads=True)
            for values in (score, expected[term])
        )
        for key, ours, theirs in zip(parameters, found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, msg=lambda text, key=key: f"{key}: {text}")


def test_heads_read_the_last_stage_but_for_vgg16():
    assert build().attention_stage == "block4"
    assert build("inception_v3").attention_stage == "dropout"  # so attention and features are dropped out alike
    method = build("vgg16", large=False)
    assert method.attention_stage == "relu5_3"
    assert method.aggregator_A.weight.shape == (4, 512, 1, 1)
    assert method.classifier_A.weight.shape == (3, 1024, 1, 1)
    assert method.aggregator_A.bias is not None
    assert build().aggregator_A.bias is None


def test_zero_heads_are_average_pooling():
    output = build()(images(), TARGETS)
    pooled = output.features_BCHW.mean((2, 3))
    method = build()
    expected = F.linear(pooled, method.head_weight_KC, method.classifier_A.bias)
    torch.testing.assert_close(output.logits_BK, expected)
    torch.testing.assert_close(output.s_b_BK, expected)
    torch.testing.assert_close(output.b_o_BK, output.b_b_BK)


# --- where gradients go -----------------------------------------------------------------------------------------------

REACHED = {  # term -> modules on top of the backbone that it trains
    "s_o": {"aggregator_A", "classifier_A"},
    "s_b": {"aggregator_B", "classifier_A"},
    "b_o": {"aggregator_A", "classifier_B"},
    "b_b": {"aggregator_B", "classifier_B"},
}


def reached(method: bcam.Method, term: str) -> set[str]:
    parameters = dict(method.named_parameters())
    loss = bcam.losses(method(images(64), TARGETS), method.config)[term]
    gradients = torch.autograd.grad(loss, parameters.values(), allow_unused=True)
    return {name for name, g in zip(parameters, gradients, strict=True) if g is not None and g.any()}


@pytest.mark.parametrize("term", REACHED)
@pytest.mark.parametrize("name", ["tiny", "resnet18"])
def test_where_the_gradient_of_a_term_goes(name, term):
    method = build(name, aggregator_init="xavier")
    found = reached(method, term)
    assert {n.split(".")[0] for n in found} == REACHED[term] | {"backbone"}
    assert {n for n in found if n.startswith("backbone")} == {
        f"backbone.{n}" for n, _ in method.backbone.named_parameters()
    }


@pytest.mark.parametrize("term", ["b_o", "b_b"])
def test_background_classifier_trains_the_network_through_attention_only(term):
    """Heads of 0 pass nothing on, and the values of the features are constants."""
    assert {n.split(".")[0] for n in reached(build(), term)} == REACHED[term]
    assert "backbone" in {n.split(".")[0] for n in reached(build(), f"s_{term[-1]}")}


@pytest.mark.parametrize("term", REACHED)
def test_background_classifier_never_trains_conv6(term):
    found = reached(build("vgg16", aggregator_init="xavier", large=False), term)
    assert ("backbone.conv6.weight" in found) == term.startswith("s")
    assert "backbone.relu5_3.0.weight" in found


def test_terms_of_weight_zero_keep_every_parameter_in_the_graph():
    method = build(lambda1=0, lambda2=0, lambda3=0, lambda4=0)
    terms = bcam.losses(method(images(), TARGETS), method.config)
    assert [term.item() for term in terms.values()] == [0, 0, 0, 0]
    sum(terms.values()).backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


def spread(method: bcam.Method) -> float:
    heads = (method.aggregator_A.weight, method.aggregator_B.weight)
    return max((weight - weight[:1]).abs().max().item() for weight in heads)


@pytest.mark.parametrize("init", ["zero", "xavier"])
def test_heads_that_start_equal_never_differ(init):
    method, batch = build(heads=100, aggregator_init=init).double(), images().double()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
    for _ in range(50):
        optimizer.zero_grad()
        sum(bcam.losses(method(batch, TARGETS), method.config).values()).backward()
        optimizer.step()
    assert method.aggregator_A.weight.abs().max() > 1e-3
    assert (spread(method) < 1e-9) == (init == "zero")  # a CPU may sum in another order for some heads


def test_heads_divide_their_gradient():
    """Each of a hundred equal heads gets a hundredth of the gradient of a single one."""
    outputs = {}
    for heads in (1, 100):
        method = build(heads=heads)
        method.load_state_dict({k: v for k, v in build().state_dict().items() if "aggregator" not in k}, strict=False)
        loss = sum(bcam.losses(method.double()(images().double(), TARGETS), method.config).values())
        loss.backward()
        outputs[heads] = method.aggregator_A.weight.grad
    torch.testing.assert_close(outputs[100], (outputs[1] / 100).expand(100, -1, -1, -1), rtol=1e-9, atol=1e-12)


# --- targets ----------------------------------------------------------------------------------------------------------


def test_images_of_several_classes():
    method = build()
    rows = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    output = method(images(), rows)
    terms = bcam.losses(output, method.config)
    expected = F.binary_cross_entropy_with_logits(output.logits_BK, rows)
    torch.testing.assert_close(terms["s_o"], expected)
    torch.testing.assert_close(terms["b_o"], F.binary_cross_entropy_with_logits(output.b_o_BK, 1 - rows))


def weights_of_tiny(path) -> str:
    torch.manual_seed(5)
    save_file(BACKBONES["tiny"].network().state_dict(), path)
    return str(path)


def test_teacher_is_the_network_as_its_weights_came(tmp_path):
    method = build(num_classes=1000, soft_topk=5, weights=weights_of_tiny(tmp_path / "tiny.safetensors"))
    weight, bias = method.backbone.head
    logits = F.linear(method.backbone(images())[0].mean((2, 3)), weight, bias)
    best = logits.softmax(1)
    kept = torch.zeros_like(best).scatter(1, best.topk(5).indices, 1)
    kept[[0, 1], TARGETS] = 1
    expected = (best * kept) / (best * kept).sum(1, keepdim=True)
    torch.testing.assert_close(method(images(), TARGETS).labels_BK, expected)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1)  # training the method leaves the teacher alone
    torch.testing.assert_close(method(images(), TARGETS).labels_BK, expected)
    assert not method(images(), TARGETS).labels_BK.requires_grad
    assert method.eval()(images(), TARGETS).labels_BK.sum() == 2  # hard ones outside of training


def test_teacher_is_no_part_of_the_model(tmp_path):
    weights = weights_of_tiny(tmp_path / "tiny.safetensors")
    soft, hard = (build(num_classes=1000, soft_topk=k, weights=weights) for k in (5, 0))
    assert list(soft.state_dict()) == list(hard.state_dict())
    assert len(list(soft.modules())) == len(list(hard.modules()))
    assert wsol_models.network_state(soft).keys() == wsol_models.network_state(hard).keys()


def test_soft_labels_need_a_teacher(tmp_path):
    with pytest.raises(
        ValueError, match="soft_topk needs weights with a classifier, its teacher, but the backbone has"
    ):
        build(soft_topk=5)(images(), TARGETS)
    with pytest.raises(ValueError, match="a classifier of 3 classes over 64 channels but theirs has 1000 over 64"):
        build(soft_topk=5, weights=weights_of_tiny(tmp_path / "tiny.safetensors"))


# --- recipe and errors ------------------------------------------------------------------------------------------------


def test_learning_rate_groups():
    for name, new, old in (
        ("resnet18", "backbone.layer4.0.conv1.weight", "backbone.layer3.0.bn1.bias"),
        ("vgg16", "backbone.conv6.bias", "backbone.relu5_3.0.bias"),
        ("inception_v3", "backbone.SPG_A3_1b.1.bias", "backbone.Mixed_6e.branch1x1.bn.bias"),
    ):
        method = build(name, bias_lr_scale=2.0)
        scales = {name: method.lr_scale(name) for name, _ in method.named_parameters()}
        assert scales[new] == scales["aggregator_A.weight"] == scales["classifier_B.bias"] == 10
        assert scales[old] == 2
        assert build(name).lr_scale(old) == 1
        assert scales[old.replace("bias", "weight")] == 1


def test_layers_start_as_in_the_code():
    method = build("vgg16", num_classes=50)
    for layer in (method.classifier_A, method.classifier_B):
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / 50), rel=0.05)
        assert not layer.bias.any()
    assert method.backbone.conv6.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 1024)), rel=0.05)
    assert not method.aggregator_A.weight.any()
    limit = math.sqrt(6 / (64 + 100))
    drawn = build(heads=100, aggregator_init="xavier").aggregator_B.weight.abs().max().item()
    assert 0.99 * limit < drawn <= limit


def test_classifiers_of_few_classes_can_start_as_those_of_many():
    method = build("vgg16", num_classes=3, classifier_std=0.1)
    for layer in (method.classifier_A, method.classifier_B):
        assert layer.weight.std().item() == pytest.approx(0.1, rel=0.05)
    assert not torch.equal(method.classifier_A.weight, method.classifier_B.weight)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"lambda3": -0.1}, "lambda3 must be a finite number >= 0 but is -0.1"),
        ({"bias_lr_scale": float("nan")}, "bias_lr_scale must be a finite number >= 0 but is nan"),
        ({"heads": 0}, "heads must be at least 1 but is 0"),
        ({"soft_topk": -1}, "soft_topk must be a number of classes, or 0 for hard labels, but is -1"),
        ({"aggregator_init": "xaver"}, "Unknown aggregator_init 'xaver'. Did you mean 'xavier'?"),
    ],
)
def test_config_refuses(option, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        replace(bcam.Config(), **option)


def test_backbone_is_cut_as_the_paper_has_it():
    assert backbone("resnet50", bcam.Config().layout).last.stride == 8
    assert backbone("vgg16", bcam.Config(large=False).layout).last.stride == 16
