"""Compiled training: one graph where that is said, the very step of an eager one, refused where it cannot be."""

import json
import shutil

import pytest
import torch
from torch.nn import functional as F

import wsol_models
from wsol_pipeline.errors import MismatchError, UsageError
from wsol_pipeline.study.plan import check_buildable
from wsol_pipeline.training import compiling
from wsol_pipeline.training.checkpoint import Position
from wsol_pipeline.training.compiling import compiled, require_compiler
from wsol_pipeline.training.model import DESCRIPTION

TRACEABLE = [name for name in wsol_models.methods() if not wsol_models.method_module(name).Method.untraceable]
QUICK = [("bas", False)]
CASES = [(name, several) for name in TRACEABLE for several in (False, True)]
ALL = [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES]


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that were traced since; each is run as it is, without kernels."""
    traced = []

    def backend(graph, inputs):
        traced.append(graph)
        return graph.forward

    monkeypatch.setattr(compiling, "BACKEND", backend)
    yield traced
    torch.compiler.reset()


def gradients(name: str, method, model, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    images_BCHW = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()
    torch.manual_seed(2)
    terms = wsol_models.method_module(name).losses(model(images_BCHW, targets), method.config)
    sum(terms.values()).backward()
    found = {name: parameter.grad for name, parameter in method.named_parameters() if parameter.grad is not None}
    method.zero_grad()
    return found | terms


@pytest.mark.parametrize(("name", "several"), ALL)
def test_a_compiled_step_is_one_graph_and_the_eager_step(name, several, graphs):
    """Or a few, where what images' names draw comes between. Another epoch and other names need no other."""
    torch.manual_seed(0)
    method = wsol_models.build(name, backbone="tiny", num_classes=6).double()
    names = list(method.state_dict())
    classes = torch.tensor([0, 3, 1, 3])
    targets = F.one_hot(classes, 6).double().index_fill(1, torch.tensor(2), 1) if several else classes
    model, traced = compiled(method, method, torch.device("cpu")), []
    for epoch, ids in enumerate(["abcd", "efgh"]):
        found = {}
        for step in (method, model):
            method.begin_step(epoch, list(ids), 4)
            expected, found = found, gradients(name, method, step, targets)
        assert found.keys() == expected.keys()
        for part, value in found.items():
            assert torch.equal(value, expected[part]), part
        traced.append(len(graphs))
    draws = name == "has" or (several and name in ("acol", "bas", "spg"))
    assert traced[0] == traced[1]
    assert traced[0] <= 3 if draws else traced[0] == 1
    assert list(method.state_dict()) == names


@pytest.mark.slow
def test_a_compiled_training_is_the_eager_one_under_another_contract(make_config, fit, graphs):
    changes = {"precision": "float64", "epochs": 1}
    eager, whole = (fit(make_config("cam", compile=on, **changes), f"compile {on}") for on in (False, True))
    assert len(graphs) == 2  # whole batches, and the last one, which is short
    assert whole.weights.keys() == eager.weights.keys()
    for name, weight in eager.weights.items():
        assert torch.equal(whole.weights[name], weight), name
    assert json.loads(whole.final.read(DESCRIPTION))["arithmetic"] == "float64, compiled"
    assert json.loads(eager.final.read(DESCRIPTION))["arithmetic"] == "float64"


def test_a_checkpoint_goes_on_only_as_it_began(make_config, fit, kill, graphs):
    kill(make_config("cam"), Position(1), "killed")
    with pytest.raises(MismatchError, match="of another configuration"):
        fit(make_config("cam", compile=True), "killed", attempt=2)


@pytest.mark.parametrize("name", sorted({*wsol_models.methods()} - {*TRACEABLE}))
def test_what_breaks_its_graph_is_refused_before_the_start(name, make_config, dataset):
    with pytest.raises(UsageError, match=f"^--compile: {name} cannot be compiled: .*[a-z]\\.$"):
        check_buildable(make_config(name, compile=True), dataset)
    check_buildable(make_config(name), dataset)
    check_buildable(make_config("bas", compile=True), dataset)


def test_a_machine_without_a_compiler_is_told(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None if name in ("g++", "gcc", "clang", "cc", "odd") else name)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UsageError, match="kernels need a C compiler on workers' machines but g\\+\\+ is not on"):
        require_compiler("cpu")
    monkeypatch.setenv("CXX", "odd")
    with pytest.raises(UsageError, match="but odd is not on this one"):
        require_compiler("cpu")
    monkeypatch.setenv("CXX", "clang++")
    require_compiler("cpu")
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="need the package triton"):
        require_compiler("cuda")
