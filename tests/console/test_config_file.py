"""Options as a YAML file: what is written is read as the same study; what does not belong there is told in a line."""

import dataclasses
from types import SimpleNamespace

import pytest
import yaml

from rayjobs import train, tune_bas, tune_bcam, tune_mldfr
from search_spaces import presets
from wsol_pipeline.console.command_line import parse
from wsol_pipeline.console.config_file import OF_ONE_RUN, dump, groups_of, keeper
from wsol_pipeline.errors import UsageError
from wsol_pipeline.storage import Store
from wsol_pipeline.study.options import StudyOptions
from wsol_pipeline.training.config import to_dict
from wsol_pipeline.training.resolve import resolve

JOBS = {"bas": tune_bas.Options, "bcam": tune_bcam.Options, "mldfr": tune_mldfr.Options}
ROWS = {next(iter(presets(method))): () for method in JOBS}
ROWS["bas-ext/table1/cub/resnet50"] = ("--options", "lambda_", "0.7")


@pytest.fixture
def written(tmp_path):
    """`written(text or tree)`: a file that holds it; its path."""

    def write(content):
        file = tmp_path / "config.yaml"
        file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return str(file)

    return write


def planned(options, method):
    """What of a study's plan a file is made of."""
    return SimpleNamespace(options=options, config=dataclasses.replace(resolve(options, method), rungs=(1, 2)))


@pytest.mark.parametrize(("row", "beside"), ROWS.items())
def test_a_study_begun_from_its_file_trains_the_same(row, beside, written):
    method = presets()[row].method
    plan = planned(parse(JOBS[method], ["--preset", row, *beside]), method)
    again = parse(JOBS[method], ["--config", written(dump(plan))])
    assert to_dict(dataclasses.replace(resolve(again, method), rungs=(1, 2))) == to_dict(plan.config)
    assert again.rungs == (1, 2)
    assert dump(planned(again, method)) == dump(plan)


def test_every_option_stands_once_in_the_group_of_help():
    tree = yaml.safe_load(dump(planned(parse(tune_bas.Options, []), "bas")))
    assert tree["job"] == "tune_bas"
    assert list(tree["training"])[:2] == ["backbone", "weights"]
    assert tree["training"]["learning_rate"] == 0.003  # the laptop's, which nobody gave
    names = [name for group in groups_of(tune_bas.Options).values() for name in group]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(tune_bas.Options))
    shown = [name for key, value in tree.items() for name in (value if isinstance(value, dict) else [key])]
    assert sorted(shown) == sorted(["job", *(name for name in names if name not in OF_ONE_RUN)])


def test_the_command_line_wins_and_options_by_name_are_merged(written):
    training = {"epochs": 7, "options": {"alpha": 0.5, "beta": 2}}
    tree = {"name": "a", "training": training, "search": {"also": ["cls_top1"]}}
    options = parse(tune_bas.Options, ["--epochs", "9", "--config", written(tree), "--options", "beta", "3"])
    assert (options.name, options.epochs, options.also) == ("a", 9, ("cls_top1",))
    assert options.options == {"alpha": "0.5", "beta": "3"}


def test_values_of_every_kind_survive(written):
    tree = {"drop_last": True, "rungs": [1, 3], "freeze_batch_norm": False, "weights": "-odd name.pt", "data": None}
    options = parse(StudyOptions, ["--config", written(tree)])
    assert (options.drop_last, options.rungs, options.freeze_batch_norm) == (True, (1, 3), False)
    assert options.weights == "-odd name.pt"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no options"),
        ("[1, 2]", "holds no options"),
        ("a: [1", "cannot be read as YAML"),
        ("epocs: 3", "unknown option 'epocs'. Did you mean 'epochs'"),
        ("search: {epochs: 3}", "unknown option 'epochs' in 'search'"),
        ("epochs: 3\ntraining: {epochs: 4}", "the option 'epochs' twice"),
        ("epochs: [3]", "epochs cannot be [3]"),
        ("epochs: true", "epochs cannot be True"),
        ("drop_last: 1", "drop_last cannot be 1"),
        ("options: 3", "options cannot be 3"),
        ("epochs: ten", "'ten'"),
        ("epochs: 0", "epochs must be at least 1"),
        ("trials: 0", "trials must be at least 1"),
        ("job: tune_cam\nepochs: 3", "is of another job ('tune_cam', not 'train')"),
        ("name: !!python/object/apply:os.system [id]", "a tag or an anchor in line 1"),
        ("name: a\nalso: &x [a]\nrungs: *x", "a tag or an anchor in line 2"),
        ("study_db: postgresql://me:***@db/studies", "holds a secret that was left out"),
        ("[" * 2000, "cannot be read as YAML"),
        ("print_config: true", "unknown option 'print_config'"),
    ],
)
def test_what_does_not_belong_there_is_told_in_a_line(written, content, message):
    file = written(content)
    with pytest.raises(UsageError) as error:
        resolve(parse(train.Options, ["--config", file]), "bas")
    assert "\n" not in str(error.value)
    assert message in str(error.value)


def test_a_file_that_is_not_there_or_far_too_large(tmp_path):
    with pytest.raises(UsageError, match="cannot be read as YAML"):
        parse(train.Options, ["--config", str(tmp_path / "none.yaml")])
    (tmp_path / "large.yaml").write_text("a: " + "b" * 1_000_001)
    with pytest.raises(UsageError, match="larger than 1,000,000 bytes"):
        parse(train.Options, ["--config", str(tmp_path / "large.yaml")])


def test_a_secret_is_left_out_and_has_to_be_given_again(written):
    options = parse(StudyOptions, ["--study-db", "postgresql://me:q7Wz3kT9vX2m@db/studies"])
    file = written(dump(planned(options, "bas")))
    with pytest.raises(UsageError, match="study_db holds a secret"):
        parse(StudyOptions, ["--config", file])
    assert parse(StudyOptions, ["--config", file, "--study-db", "sqlite:///a.db"]).study_db == "sqlite:///a.db"


def test_the_study_keeps_its_options(tmp_path):
    plan = planned(parse(tune_bas.Options, ["--seed", "5"]), "bas")
    plan.folder = Store.at(tmp_path)
    keep = keeper(plan)
    keep("leased", None, {})
    assert not (tmp_path / "config.yaml").exists()
    keep("opened", None, {})
    assert parse(tune_bas.Options, ["--config", str(tmp_path / "config.yaml")]).seed == 5
