"""Compiled training: one graph where that is said, the very step of an eager one, refused where it cannot be."""

import dataclasses
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import wsol_models
from wsol_pipeline.errors import MismatchError, UsageError
from wsol_pipeline.storage import Store
from wsol_pipeline.study.plan import check_buildable
from wsol_pipeline.training import compiling
from wsol_pipeline.training.checkpoint import CheckpointStore, Position
from wsol_pipeline.training.compiling import compiled, keep_kernels, require_compiler
from wsol_pipeline.training.config import Job, to_dict
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


@pytest.fixture
def kernels(monkeypatch, tmp_path):
    """Inductor itself; gives how many graphs were traced since."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))
    before = graphs_traced()
    yield lambda: graphs_traced() - before
    torch.compiler.reset()


def graphs_traced() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cam", "bas"])
def test_a_training_by_inductors_kernels_is_the_eager_one_but_for_last_bits(method, make_config, fit, kill, kernels):
    """Compared in float64, where five steps carry these to 1e-9 at most. One that was killed goes on to the very end of
    the undisturbed one, by the same kernels. Validation, of another size, has none."""
    config = make_config(method, compile=True, precision="float64", epochs=1)
    whole = fit(config, "whole")
    assert kernels() == 2  # whole batches, and the last one, which is short
    eager = fit(dataclasses.replace(config, compile=False), "eager")
    assert kernels() == 2
    kill(config, Position(0, 28), "killed", checkpoint_batches=2)
    resumed = fit(config, "killed", attempt=2)
    for name, weight in eager.weights.items():
        torch.testing.assert_close(whole.weights[name], weight, rtol=1e-9, atol=1e-9)
        assert torch.equal(resumed.weights[name], whole.weights[name]), name
    assert whole.records[0]["train"] == pytest.approx(eager.records[0]["train"], rel=1e-9)
    assert resumed.records == whole.records


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cam", "bas"])
def test_two_compiled_workers_train_what_two_eager_ones_do(method, make_config, dataset, reading, outcome, tmp_path):
    """Each compiles what DDP wraps, so that the compiler knows where DDP sends gradients: no graph more than of one."""
    cases = []
    for name, on in (("eager", False), ("compiled", True)):
        config = make_config(method, compile=on, precision="float64", epochs=1)
        job = Job(config, dataset.uri, str(tmp_path / name), 1, workers=2, reading=reading)
        cases.append({"job": to_dict(job), "rendezvous": str(tmp_path / f"{name}.meet"), "stop_at": None})
        cases[-1]["backend"] = "aot_eager"
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    ranks = str(Path(__file__).with_name("ranks.py"))
    subprocess.run([sys.executable, ranks, "2", str(tmp_path / "cases.json")], check=True, timeout=800)
    eager, made = (outcome(CheckpointStore(Store.at(tmp_path / name), 1)) for name in ("eager", "compiled"))
    for name, weight in eager.weights.items():
        torch.testing.assert_close(made.weights[name], weight, rtol=1e-9, atol=1e-9)
    assert made.records[0]["train"] == pytest.approx(eager.records[0]["train"], rel=1e-9)
    traced = [(tmp_path / f"compiled.meet.graphs-{rank}").read_text() for rank in range(2)]
    assert traced == ["2", "2"]
    assert not (tmp_path / "eager.meet.graphs-0").exists()


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


@pytest.mark.parametrize("mode", [0o700, 0o777, None])
def test_kernels_are_kept_only_where_nobody_else_writes(tmp_path, monkeypatch, mode):
    """Inductor reads pickles there, and runs what it finds."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))
    if mode is not None:
        (tmp_path / "kernels").mkdir()
        (tmp_path / "kernels").chmod(mode)
    if mode == 0o777:
        with pytest.raises(UsageError, match="^--compile: kernels cannot be kept there .*kernels may be written to by"):
            keep_kernels()
    else:
        keep_kernels()
        assert stat.S_IMODE((tmp_path / "kernels").stat().st_mode) == 0o700


def test_kernels_are_kept_below_the_users_cache_folder_by_default(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_kernels()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "wsol/kernels")


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
