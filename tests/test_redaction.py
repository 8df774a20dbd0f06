"""No shape of a secret leaves by any way, and nothing that only looks like one is lost."""

import base64
import io
import json
import logging
import sys
import time
from types import SimpleNamespace
from unittest.mock import Mock
from urllib.parse import quote

import optuna
import pytest
from rich.console import Console

from wsol_pipeline import redaction
from wsol_pipeline.console import config_file, screens
from wsol_pipeline.console.main import run_main
from wsol_pipeline.errors import WsolError
from wsol_pipeline.redaction import redact
from wsol_pipeline.report import latex
from wsol_pipeline.report.facts import Line
from wsol_pipeline.report.tables import comparison_table, markdown
from wsol_pipeline.storage import Store
from wsol_pipeline.study import outcome, rehearsal
from wsol_pipeline.study.identity import Home
from wsol_pipeline.study.lease import Lease
from wsol_pipeline.study.ledger import FAILURE, open_ledger
from wsol_pipeline.study.options import StudyOptions
from wsol_pipeline.study.standings import Standing
from wsol_pipeline.tracking.projection import Projection, TrialView
from wsol_pipeline.tracking.runs import StudyRuns
from wsol_pipeline.training import run
from wsol_pipeline.training.checkpoint import CheckpointStore
from wsol_pipeline.training.config import Job, TrainConfig
from wsol_pipeline.verdict import judge
from wsol_pipeline.verdict.rows import Contender, Row

S = "q7Wz3kT9vX2mB5nR8sD4"  # no secret of anybody, and in the shapes below
PHRASE = "correct/horse & staple"  # has no shape: known by its variable alone
PEM = f"-----BEGIN RSA PRIVATE KEY-----\n{S}\n{S}\n-----END RSA PRIVATE KEY-----"
BASIC = base64.b64encode(f"user:{S}".encode()).decode()

SHAPES = {
    "sqlalchemy": f"cannot open postgresql+psycopg://me:{S}@db:5432/studies",
    "@ in a password": f"postgresql://me:a@{S}@db/studies",
    "/ in a password": f"mysql://me:a/{S}@db/studies",
    "https": f"https://me:{S}@mlflow.example/api?x=1",
    "token as user": f"git clone https://{S}@git.example/a.git",
    "s3 with keys": f"s3://KEY:{S}@bucket/runs",
    "redis": f"redis://:{S}@cache:6379/0",
    "url in percent": f"next=https%3A%2F%2Fme%3A{S}%40host%2Fpath",
    "aws key id": f"InvalidAccessKeyId AKIA{S.upper()[:16]} is unknown",
    "aws secret, ini": f"aws_secret_access_key = {S}/+{S}",
    "aws secret, json": json.dumps({"SecretAccessKey": f"{S}/+", "Expiration": "2026"}),
    "aws session": f"AWS_SESSION_TOKEN=FwoG{S}//{S}",
    "presigned": f"https://b.s3.example/k?X-Amz-Credential={S}%2Feu&X-Amz-Signature={S}&X-Amz-Security-Token={S}",
    "sigv4": f"Authorization: AWS4-HMAC-SHA256 Credential={S}/eu/s3, SignedHeaders=host, Signature={S}",
    "gcs hmac": f"access id GOOG1E{S.upper()} refused",
    "service account": json.dumps({"type": "service_account", "private_key": PEM, "client_id": "1"}),
    "azure sas": f"https://a.blob.example/c?sv=2026&se=2027&sig={S}%3D&sp=r",
    "azure account": f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={S}==;EndpointSuffix=x",
    "bearer": f"curl -H 'Authorization: Bearer {S}'",
    "bearer alone": f"sent Bearer {S} to it",
    "basic": f"{{'Authorization': 'Basic {BASIC}', 'Accept': '*/*'}}",
    "basic alone": f"with Basic {BASIC}",
    "jwt": f"expired: eyJ{S}.eyJ{S}.{S}",
    "github": f"remote: ghp_{S}{S} is revoked",
    "github, fine": f"github_pat_{S}_{S}",
    "gitlab": f"glpat-{S}",
    "hugging face": f"hf_{S}{S}",
    "slack": f"xoxb-1234-{S}",
    "slack hook": f"https://hooks.slack.com/services/T0/B0/{S}",
    "openai": f"sk-proj-{S}{S}",
    "pem": f"key is\n{PEM}\nand no other",
    "pem, cut": f"-----BEGIN PRIVATE KEY-----\n{S}\n{S[:9]}",
    "password=": f"connect(user=me, password={S}, host=h)",
    "short password=": "password=q7Wz3kT9 failed",
    "passwd:": f"passwd: {S}",
    "--password": f"psql --password {S} --host h",
    "argv": f"['train.py', '--api-token', '{S}', '--name', 'a']",
    "PGPASSWORD": f"PGPASSWORD={S} psql",
    "MYSQL_PWD": f"MYSQL_PWD={S}",
    "json": json.dumps({"user": "me", "password": f"{S} with \" and ' and spaces {S}"}),
    "json in json": json.dumps(json.dumps({"client_secret": S})),
    "yaml": f"db:\n  user: me\n  password: '{S} and more {S}'\n",
    "percent": f"form password%3D{S}&user=me",
    "toml": f'api_key = "{S}"',
    "header": f"x-api-key: {S}",
    "cookie of a token": f"Set-Cookie: session_token={S}; Path=/",
    "variable": f"it said {PHRASE} to everybody",
    "variable in percent": f"GET /login?who=me&why={quote(PHRASE, safe='')}",
    "variable in json": json.dumps({"note": f'a "{PHRASE}"'}),
    "ray's token": f"sent ray-{PHRASE[::-1]} to it",
}
INNOCENT = (
    f"fingerprint {'3fa9c07d' * 8}",
    "code.revision 97cdbc9a1f0e+changes, seed 0xdeadbeefcafe, sha256:" + "0f" * 32,
    "s3://bucket/runs/bas-cub/trials/0003/attempt-0002/final and /data/my_runs/token-experiments/key.json",
    "alpha 0.5, beta 1.5, lambda_ 0.91, token_dropout=0.1, num_tokens=196, cls_token=True, key=3, sigma=0.25",
    "models:/bas-cub@champion at http://127.0.0.1:5000/models/bas@champion, mail me@example.org",
    "postgresql+psycopg://db:5432/studies, https://github.com/org/repo/issues/12, sqlite:////runs/study.db",
    "resnet50, vgg16_bn, task-0001-resnet50-long-name-of-a-study, sk-learn-compatible-estimators",
    "basic configuration of a bearer authentication: set AWS_SECRET_ACCESS_KEY, or use an instance role",
    "HOME=/root PWD=/work/runs OLDPWD=/tmp RAY_AUTH_MODE=token --password-file x, token: missing",
    'Missing key(s) in state_dict: "head.weight", "head.bias". Unexpected key(s): \'token\'',
    "[  12 s] trial   3 epoch 1/4  loss 0.123  max_box_acc_v2 45.6 (all settings)  123 images/s",
)


@pytest.fixture(autouse=True)
def variables(monkeypatch, tmp_path):
    """A secret that has no shape, in a variable and in Ray's token file."""
    (tmp_path / "token").write_text(f"ray-{PHRASE[::-1]}\n")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PHRASE)


def leaked(text: str) -> list[str]:
    """What of the secrets is in `text`, in whatever case or escaping."""
    plain = text.replace("\\", "").lower()
    parts = (S[:8], BASIC, PHRASE, quote(PHRASE, safe=""), PHRASE.replace("&", "&amp;"), PHRASE[::-1])
    return [part for part in parts if part.lower() in plain]


@pytest.fixture
def process(capsys, monkeypatch):
    """This process as far as it tells: `printed()` since the last call, `logged()` by `logger`, which is somebody's."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    logger, handler, factory = logging.getLogger("a library"), logging.StreamHandler(), logging.getLogRecordFactory()
    handler.setStream(io.StringIO())
    logger.addHandler(handler)
    yield SimpleNamespace(printed=lambda: "".join(capsys.readouterr()), logged=handler.stream.getvalue, logger=logger)
    logger.removeHandler(handler)
    logging.setLogRecordFactory(factory)


@pytest.mark.parametrize("shape", SHAPES)
def test_text_and_data(shape):
    text = SHAPES[shape]
    assert leaked(text)
    assert not leaked(redact(text))
    assert redact(redact(text)) == redact(text)
    assert not leaked(json.dumps(redact({"a": [text, {"b": (text,)}], text: 1})))


@pytest.mark.parametrize("text", INNOCENT)
def test_what_only_looks_like_a_secret_stays(text):
    assert redact(text) == text


def test_what_surrounds_a_secret_stays():
    assert redact(SHAPES["sqlalchemy"]) == "cannot open postgresql+psycopg://***@db:5432/studies"
    assert redact(SHAPES["pem"]) == "key is\n***\nand no other"
    assert redact(SHAPES["json"]) == '{"user": "me", "password": "***"}'
    assert redact(SHAPES["argv"]) == "['train.py', '--api-token', '***', '--name', 'a']"
    assert redact(SHAPES["variable"]) == "it said *** to everybody"
    assert redact({"password": "x y", "token": "", "epochs": 3, "beta": 1.5}) == {
        "password": "***", "token": "", "epochs": 3, "beta": 1.5,
    }  # fmt: skip


def test_short_values_of_variables_are_left_alone(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    assert redact("a test of the latest contest") == "a test of the latest contest"


@pytest.mark.parametrize("shape", SHAPES)
def test_terminal_and_logs(process, shape):
    text = SHAPES[shape]
    redaction.install()
    redaction.install()
    print("before", text, "after")
    Console(width=1000, soft_wrap=True).print(text, markup=False)
    process.logger.error("it was %s", text)
    try:
        raise RuntimeError(text)
    except RuntimeError as error:
        process.logger.exception("it raised")
        sys.excepthook(type(error), error, error.__traceback__)
    printed = process.printed()
    assert not leaked(printed + process.logged())
    assert "before" in printed
    for part in ("it was", "it raised", "Traceback", "RuntimeError: "):
        assert part in process.logged()


@pytest.mark.parametrize("shape", SHAPES)
def test_errors_of_a_job(process, shape):
    def main():
        raise WsolError(f"it broke: {SHAPES[shape]}")

    with pytest.raises(SystemExit, match="1"):
        run_main(main)
    printed = process.printed()
    assert printed.startswith("error: it broke: ")
    assert not leaked(printed)


def test_a_log_record_with_wrong_arguments_is_loggings_business(process):
    redaction.install()
    record = logging.getLogRecordFactory()("a", logging.ERROR, "a.py", 1, "%d of %d", (1,), None)
    assert (record.msg, record.args) == ("%d of %d", (1,))


@pytest.mark.parametrize("shape", SHAPES)
def test_failure_records(tmp_path, process, shape):
    text = SHAPES[shape]
    ledger = open_ledger(
        optuna.storages.InMemoryStorage(), "s", space=lambda trial: {}, contract={}, published={},
        sampler=lambda number: optuna.samplers.RandomSampler(), pruner=optuna.pruners.NopPruner(),
        home=Home("1", "/s"), lease=Lease(Store.at(tmp_path / "lease"), 1),
    )  # fmt: skip
    ledger.fail(ledger.ask().number, "nan", text)
    job = Job(TrainConfig(), data="", trial=str(tmp_path), attempt=1)
    with run._own_failures(job):
        raise ValueError(text)
    with pytest.raises(RuntimeError) as caught, run._own_failures(job):
        raise RuntimeError(text) from KeyError(text)
    failure = CheckpointStore(Store.at(tmp_path), 1).failure()
    assert failure["kind"] == "configuration"
    assert not leaked(failure["message"] + str(ledger.get(0).user_attrs[FAILURE]))
    assert not leaked(f"{caught.value} {caught.value.__cause__}")


def test_a_secret_is_found_before_a_message_is_cut(tmp_path):
    store = CheckpointStore(Store.at(tmp_path), 1)
    store.fail("data", "x" * 1985 + f" postgresql://me:{S}@db/studies")  # the @ lies beyond the cut
    assert not leaked(store.failure()["message"])


class Recorder:
    """An MLflow client that keeps what it is given."""

    def __init__(self) -> None:
        self.told = []

    def create_run(self, *_, tags, run_name):
        self.told.append(str(tags))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_name))

    def search_runs(self, *_, **__):
        return type("Page", (list,), {"token": None})()

    def get_run(self, run_id):
        return SimpleNamespace(data=SimpleNamespace(metrics={}))

    def log_batch(self, run_id, metrics, params, tags):
        self.told += [str(dict(item)) for item in (*params, *tags)]

    def log_text(self, run_id, text, name):
        self.told.append(text)


@pytest.mark.parametrize("shape", SHAPES)
def test_mlflow(shape):
    text, client = SHAPES[shape], Recorder()
    view = TrialView(0, "RUNNING", {"option": text, "beta": 0.5}, {"wsol.failure": text}, [])
    runs = StudyRuns(lambda: (client, "0"), "s", {"wsol.data": text})
    assert Projection(runs, lambda: [view]).flush()
    runs.add_text("ranking.md", text)
    assert len(client.told) == 2 + 2 + 3 + 1  # two runs, two parameters, three tags, a text
    assert "{'key': 'beta', 'value': '0.5'}" in client.told
    assert not leaked(" ".join(client.told))


@pytest.mark.parametrize("shape", SHAPES)
def test_what_a_study_prints_and_keeps(tmp_path, monkeypatch, shape):
    text = SHAPES[shape]
    options = StudyOptions(name="a", experiment=text, options={"x": text}, weights=text)
    shown = config_file.dump(SimpleNamespace(options=options, config=TrainConfig(options={"x": text})))
    plan = SimpleNamespace(
        config=TrainConfig(), dataset=SimpleNamespace(uri=text, manifest=None), folder=Store.at(tmp_path), rule=None,
        options=SimpleNamespace(store=Store.at(tmp_path)),
    )  # fmt: skip
    ledger = SimpleNamespace(trials=list, proposals=list, home=SimpleNamespace(id="1"))
    monkeypatch.setattr(outcome, "seal_of", lambda final: "seal")
    monkeypatch.setattr(outcome, "is_paper_data", lambda manifest, name: False)
    winner = json.dumps(outcome.winner_record(plan, ledger, [Standing((0,), (1.0,))], Store(text), None))
    monkeypatch.setattr(judge, "evaluation_name", lambda contender: "result")
    monkeypatch.setattr(judge, "somewhere", lambda *_, **__: ({"rows": [], "provenance": {"x": text}}, {}))
    judge.judged_rows(judge.EvaluateOptions(storage=str(tmp_path)), Contender("a", "a", Store("")), None, None)
    result = (tmp_path / "a/evaluations/result.json").read_text()
    assert not leaked(shown + winner + result)


@pytest.mark.parametrize("shape", SHAPES)
def test_dry_run(shape, monkeypatch):
    text, console = SHAPES[shape], Console(file=io.StringIO(), width=110)
    split = SimpleNamespace(num_rows=1)
    plan = SimpleNamespace(
        options=SimpleNamespace(
            name="a",
            workers=1,
            reading="cached",
            store=Store("/runs"),
            experiment="e",
            storage_is_shared=False,
            cluster_may_grow=False,
            device="cpu",
            concurrent=1,
            cache_budget_gb=1,
            sync_batch_norm=False,
            gpus_per_trial=1.0,
            compile=False,
            precision="auto",
        ),
        config=TrainConfig(),
        job=lambda *_, **__: None,
        cpus=lambda device: 1,
        decoded_bytes=1,
        streamed=False,
        sample=None,
        folder=Store("/runs/a"),
        dataset=SimpleNamespace(uri="/data", train=split, val=split, classes=("a",)),
        recipe="recipe: a",
        promise=SimpleNamespace(sentences=("validation: boxes",)),
    )
    monkeypatch.setattr(rehearsal, "connect_mlflow", lambda *_: lambda: (SimpleNamespace(tracking_uri=text), "0"))
    monkeypatch.setattr(rehearsal, "cluster", Mock(check_placement=lambda *_: 1))
    monkeypatch.setattr(rehearsal, "measure_there", lambda job: rehearsal.Measured(1, 1, 1, 1, 1, 1, 1, 1, 0))
    monkeypatch.setattr(rehearsal, "estimated", lambda *_: rehearsal.Estimate(1, 1, 1, 1, 1))
    monkeypatch.setattr(screens, "_console", lambda width: console)
    screens.print_rehearsal(plan, rehearsal.rehearse(plan))
    shown = "".join(line.strip("│┃ ") for line in console.file.getvalue().splitlines())
    assert "MLflow" in shown
    assert not leaked(shown)


@pytest.mark.parametrize("shape", SHAPES)
def test_tables_of_a_report(shape):
    row = Row(SHAPES[shape], SHAPES[shape], {"max_box_acc_v2": 1.0}, {}, {}, {})
    table = comparison_table([Line(row)], "max_box_acc_v2")
    assert not leaked(markdown(table) + latex.comparison(table, "", "tab:a"))


@pytest.mark.parametrize("work", [lambda line: redact(line), lambda line: redact({"line": line, "beta": 0.5})])
def test_a_thousand_trials_of_thirty_lines_take_seconds(work):
    """A tenth of them cost 0.25 s where this machine's million squares cost 0.06 s."""
    squares = cpu_seconds(lambda: sum(number * number for number in range(1_000_000)))
    assert cpu_seconds(lambda: [work(INNOCENT[-1]) for _ in range(3000)]) < 25 * squares


def cpu_seconds(work) -> float:
    """Of two times the shorter one: others that share a core make it slower at times."""
    found = []
    for _ in range(2):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found)


@pytest.mark.parametrize(
    "part", ["a", "://a:", "-", "password", "token=", "token: ", "-----BEGIN PRIVATE KEY", '"', "\\", " ", "basic ",
             "eyJaaaaaaaa.", "sk-", "%3A%2F%2F", "AbC1+/", "authorization=", "--a-"],
)  # fmt: skip
def test_no_text_takes_long(part):
    """Ten times the text takes ten times as long; it would be a hundred times where a rule goes back over it."""
    short, long = (cpu_seconds(lambda n=n: redact("password=" + part * (n // len(part)))) for n in (20_000, 200_000))
    assert long < 30 * short + 0.1
