"""Files are data: nothing here runs what lies in one, and names from strangers stay names. See SECURITY.md."""

import ast
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from rayjobs import report
from wsol_models._backbones.weights import read_file
from wsol_pipeline.compiled import may_be_kept
from wsol_pipeline.console.main import run_main
from wsol_pipeline.data.cache import SEAL, _seal
from wsol_pipeline.data.dataset import Dataset
from wsol_pipeline.data.importers import synthetic
from wsol_pipeline.data.importers.voc import Sbd
from wsol_pipeline.data.ingest import import_dataset
from wsol_pipeline.data.pixels import IMAGES, cached_pixels
from wsol_pipeline.data.schema import RowError
from wsol_pipeline.data.shards import MANIFEST, read_manifest
from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.report import latex
from wsol_pipeline.report.facts import Line
from wsol_pipeline.report.tables import comparison_table, markdown
from wsol_pipeline.storage import Store
from wsol_pipeline.study import database
from wsol_pipeline.training.checkpoint import CheckpointStore, Position, write_sealed
from wsol_pipeline.training.config import TrainConfig, check_name, to_dict
from wsol_pipeline.training.model import DESCRIPTION, WEIGHTS, load_model, load_model_files
from wsol_pipeline.training.options import RunOptions
from wsol_pipeline.verdict.gallery import Shown, draw_gallery
from wsol_pipeline.verdict.options import EvaluateOptions
from wsol_pipeline.verdict.rows import Row

ROOT = Path(__file__).parents[1]
CODE = ("wsol", "wsol_models", "wsol_pipeline", "search_spaces", "rayjobs", "benchmarks", "tests")
UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "skops", "pandas", "pd"}
NEVER = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "torch.hub.load", "torch.jit.load", "optuna.storages.RedisStorage", "mlflow.sklearn.load_model",
    "mlflow.pytorch.load_model", "mlflow.pyfunc.load_model",
}  # fmt: skip


def dangers(text: str) -> list[str]:
    """Calls in Python code that run, or may run, what a file or a string holds."""
    found = []
    for node in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
        called = ast.unparse(node.func)
        words = {word.arg: ast.unparse(word.value) for word in node.keywords}
        module, _, name = called.rpartition(".")
        unpickles = module.split(".")[0] in UNPICKLERS and name.lower().startswith(
            ("load", "unpickl", "read_pickle", "open")
        )
        whole = (called == "torch.load" or "check_hash" in words) and words.get("weights_only") != "True"
        told = any(words.get(word, "False") != "False" for word in ("allow_pickle", "shell"))
        if called in NEVER or unpickles or whole or told:
            found.append(f"line {node.lineno}: {called}")
    return found


def test_no_code_runs_what_a_file_holds():
    files = [path for folder in CODE for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 150
    found = {(str(path.relative_to(ROOT)), call) for path in files for call in dangers(path.read_text())}
    # What MLflow loads brings its code: tests may load the models that they have made.
    found = {
        (path, call) for path, call in found if not (path.startswith("tests/") and call.endswith("pyfunc.load_model"))
    }
    assert not found


@pytest.mark.parametrize(
    "line",
    ["pickle.loads(b)", "cloudpickle.load(f)", "dill.load(f)", "joblib.load(p)", "pd.read_pickle(p)", "shelve.open(p)",
     "pickle.Unpickler(f)", "torch.load(p)", "torch.load(p, weights_only=False)", "w.get_state_dict(check_hash=True)",
     "np.load(p, allow_pickle=True)", "yaml.load(t)", "eval(t)", "exec(t)", "subprocess.run(c, shell=True)",
     "os.system(c)", "__import__(n)", "mlflow.sklearn.load_model(u)", "torch.hub.load(r, m)"],
)  # fmt: skip
def test_the_search_for_such_code_finds_it(line):
    assert dangers(f"x = 1\n{line}") != []


class Payload:
    """Unpickled it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def payload(tmp_path):
    """A pickle that creates a file when it is loaded; afterwards the file must not be there."""
    trace = tmp_path / "it ran"
    data = pickle.dumps(Payload(trace))
    yield data
    assert not trace.exists()


def test_the_payload_works(tmp_path):
    load = getattr(pickle, "loads")  # noqa: B009  # spelt so that the search above passes it over
    load(pickle.dumps(Payload(tmp_path / "it ran")))
    assert (tmp_path / "it ran").exists()


@pytest.fixture
def planted(payload, tmp_path):
    """A trial's store whose newest checkpoint is the payload, in a PyTorch file and sealed as ours are."""
    store = CheckpointStore(Store.at(tmp_path / "trial"), 1)
    store.save(Position(1), {"x": torch.zeros(1)}, [])
    torch.save({"x": Payload(tmp_path / "it ran")}, tmp_path / "state.pt")
    for position, data in (("e0002-s00000000", payload), ("e0003-s00000000", (tmp_path / "state.pt").read_bytes())):
        write_sealed(store.own / position, {"state.pt": data, "records.json": b"[]"})
    return store


def test_a_planted_checkpoint_is_refused_and_passed_over(planted, caplog):
    for folder in ("e0002-s00000000", "e0003-s00000000"):
        with pytest.raises(DataError, match="state.pt holds more than tensors"):
            planted.load(f"attempt-0001/{folder}")
    assert planted.newest().position == Position(1)
    assert caplog.text.count("passed over a broken checkpoint") == 2


@pytest.mark.parametrize("name", ["w.pth", "zipped.pth", "w.safetensors", "w.npz", "w.bin", "w.pt", "w.pkl"])
def test_planted_weights_are_refused(payload, tmp_path, name):
    file = tmp_path / name
    file.write_bytes(payload)
    if name == "zipped.pth":
        torch.save({"conv1.weight": Payload(tmp_path / "it ran")}, file)
    with pytest.raises(ValueError, match="not a state dict of tensors|existing .pth or .safetensors file"):
        read_file(str(file))


def test_planted_models_are_refused(payload, tmp_path):
    config = to_dict(TrainConfig(method="cam", readout="cam"))
    described = json.dumps({"train": config, "classes": ["a", "b"], "choice": {}, "multilabel": False}).encode()
    folder = Store.at(tmp_path / "final")
    write_sealed(folder, {WEIGHTS: payload, DESCRIPTION: described})
    for load in (lambda: load_model(folder), lambda: load_model_files(tmp_path / "final")):
        with pytest.raises(DataError, match="model.safetensors does not hold its tensors"):
            load()


def test_planted_pixels_are_refused(payload, tmp_path):
    data, cache = Store.at(tmp_path / "data"), tmp_path / "cache"
    options = synthetic.Options(train=16, val=8, test=8, size=32)
    manifest = import_dataset(synthetic.read(Path(), options), data, name="a", origin={})
    split = Dataset(data.uri, manifest).val
    cached_pixels(split, 32, str(cache))
    [images] = cache.rglob(IMAGES)
    for planted in (payload, npy_with(Payload(tmp_path / "it ran"), tmp_path)):
        images.write_bytes(planted)
        images.with_name(SEAL).unlink()
        _seal(images.parent)
        with pytest.raises(ValueError, match="Python objects|pickled"):
            cached_pixels(split, 32, str(cache))


@pytest.mark.parametrize(("mode", "kept"), [(0o700, True), (0o777, False), (None, True)])
def test_compiled_code_is_kept_only_where_nobody_else_writes(tmp_path, monkeypatch, mode, kept):
    """Numba's files hold pickles, which run as they are read."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    if mode is not None:
        (tmp_path / "numba").mkdir()
        (tmp_path / "numba").chmod(mode)
    assert may_be_kept() is kept


def test_every_kernel_asks_whether_it_may_be_kept():
    files = (ROOT / "wsol_pipeline").rglob("*.py")
    assert [path.name for path in files if "from numba" in path.read_text()] == ["compiled.py"]


def npy_with(planted: Payload, folder: Path) -> bytes:
    np.save(folder / "planted.npy", np.array([planted], object))  # saving pickles; loading must not
    return (folder / "planted.npy").read_bytes()


def test_a_planted_mat_is_left_out(payload, tmp_path):
    (tmp_path / "a.mat").write_bytes(payload)
    with pytest.raises(RowError, match="is not of SBD"):
        Sbd(tmp_path / "a.mat").draw()


def test_planted_journals_and_manifests_are_refused(payload, tmp_path):
    store = Store.at(tmp_path)
    store.write("journal/00000000.json", payload)
    with pytest.raises(DataError, match="is damaged"):
        database.ObjectJournal(store / "journal").read_logs(0)
    store.write(MANIFEST, payload)
    with pytest.raises(DataError, match="The manifest of .* is broken"):
        read_manifest(store)


BAD_NAMES = [
    "../up",
    "a/b",
    "a\x00b",
    "a\nb",
    "\x1b[2Jx",
    "",
    ".",
    "..",
    "-" * 129,
    "=1+1 ",
    "<script>",
    "a b",
    "ü",
    "$x$",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_of_studies_stand_in_paths_databases_and_urls(name):
    for make in (
        lambda: check_name("study", name), lambda: RunOptions(name=name), lambda: EvaluateOptions(study=(name,)),
        lambda: report.Options(study=(name,)),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="1 to 128 letters"):
            make()


@pytest.mark.parametrize("name", ["a\x1b[31mred", "a\nb", "a\x00b", "a\u202eb"])
def test_class_names_of_a_strangers_manifest_must_be_printable(tmp_path, name):
    options = synthetic.Options(train=16, val=8, test=8, size=32)
    manifest = import_dataset(synthetic.read(Path(), options), Store.at(tmp_path), name="a", origin={})
    found = json.loads((tmp_path / MANIFEST).read_text())
    found["classes"][0] = name
    (tmp_path / MANIFEST).write_text(json.dumps(found))
    with pytest.raises(DataError, match="cannot be printed") as caught:
        read_manifest(Store.at(tmp_path))
    assert manifest.classes[0] != name
    assert str(caught.value).isprintable()


def test_an_error_line_does_not_steer_the_terminal(capsys):
    def main():
        raise DataError("no such file: a\x1b]0;title\x07\x1b[2J\r\u202eb")

    with pytest.raises(SystemExit, match="3"):
        run_main(main)
    assert capsys.readouterr().err == "error: no such file: a\\x1b]0;title\\x07\\x1b[2J\\r\\u202eb\n"


@pytest.mark.parametrize("place", ["s3://KEY:secret12@bucket/runs", "runs/password=hunter2"])
def test_no_place_has_credentials_in_its_name(place):
    with pytest.raises(UsageError, match=r"\*\*\*.*holds a secret") as caught:
        Store.at(place)
    assert "secret12" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_tables_of_a_report_take_any_label():
    row = Row(
        "a|b ![x](http://tracker.example)\n<img src=x>",
        r"\input{/etc/passwd} $x$ 5%",
        {"max_box_acc_v2": 1.0},
        {},
        {},
        {},
    )
    table = comparison_table([Line(row)], "max_box_acc_v2")
    line = markdown(table).splitlines()[2]
    assert line.startswith(r"| a\|b ![x]\(http://tracker.example) &lt;img src=x> |")
    assert r"\textbackslash{}input\{/etc/passwd\} \$x\$ 5\%" in latex.comparison(table, "", "tab:a")


def test_a_gallery_takes_any_class_name(tmp_path):
    box = np.array([1.0, 1.0, 5.0, 5.0])
    shown = [Shown(np.zeros((8, 8)), box, 0.5)]
    file = draw_gallery([np.zeros((8, 8, 3), np.uint8)], [r"$\frac{"], [box[None]], {"m": shown}, tmp_path / "g.png")
    assert file.stat().st_size > 1000
