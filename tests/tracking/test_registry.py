"""Who becomes champion, and who does not: nothing moves when a tag is not what was judged."""

import ast

import mlflow
import pytest

from wsol_pipeline.errors import DataError, UsageError
from wsol_pipeline.tracking import registry
from wsol_pipeline.tracking.connect import connect
from wsol_pipeline.tracking.registry import CHAMPION, check_name_is_free, crown, model_tags

BY_BOXES = {"select_by": "boxes", "threshold_by": None}
TUNED = model_tags(
    {"train": {"protocol": "wsol-v1", "image_size": 64, "resize_size": 72, **BY_BOXES}, "dataset": "d" * 64}
)
OTHERWISE = {"wsol.protocol": "bas-ext", "wsol.image_size": "32 of 72", "wsol.data_fingerprint": "e" * 64}
FIGURES = {"max_box_acc_v2": 71.25, "gt_known_loc": 90.0}


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> mlflow.MlflowClient:
    """Made once: MLflow's tables take seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    return connect(f"sqlite:///{folder}/mlflow.db", "tests", str(folder))[0]


@pytest.fixture
def name(client) -> str:
    """A registered model of this test's own."""
    return client.create_registered_model(f"model-{len(client.search_registered_models())}").name


@pytest.fixture
def version(client, name, tmp_path):
    """`version(fingerprint, **tags)`: a new version; a tag that is None is left out."""

    def make(fingerprint: str, **changes: str | None) -> str:
        tags = {**TUNED, "wsol.model": fingerprint, "wsol.selected_on": "val/boxes"}
        tags |= {f"wsol.{tag}": value for tag, value in changes.items()}
        kept = {tag: value for tag, value in tags.items() if value is not None}
        return str(client.create_model_version(name, str(tmp_path), tags=kept).version)

    return make


@pytest.fixture
def holder(client, name):
    """`holder()`: the version that is champion, or None."""
    return lambda: client.get_registered_model(name).aliases.get(CHAMPION)


def test_the_first_champion_is_named(client, name, version, holder):
    version("a")
    assert crown(client, name, "a", TUNED, FIGURES) == f"models:/{name}@champion is version 1"
    assert crown(client, name, "a", TUNED, FIGURES) == f"models:/{name}@champion is version 1"
    assert str(holder()) == "1"
    found = client.get_model_version(name, "1")
    assert found.tags["wsol.test.max_box_acc_v2"] == "71.25"
    assert found.description.count("| MaxBoxAccV2 | 71.2 |") == 1  # told again it replaces what was told
    assert f'wsol.load_model("models:/{name}/1")' in found.description


@pytest.mark.parametrize(
    ("was", "told"),
    [
        ({"max_box_acc_v2": 70.0}, ", better on test: max_box_acc_v2 70.00 → 71.25"),
        ({"max_box_acc_v2": 72.5}, ", worse on test: max_box_acc_v2 72.50 → 71.25"),
        ({"max_box_acc_v2": 71.25}, ", the same on test: max_box_acc_v2 71.25 → 71.25"),
        ({"gt_known_loc": 80.0}, ", better on test: gt_known_loc 80.00 → 90.00"),
        ({}, ", whose figures on test are not known"),
    ],
)
def test_an_earlier_champion_gives_way_and_both_figures_are_told(client, name, version, holder, was, told):
    """The new one is validation's choice: to keep the one that is better on test would be to choose on test."""
    version("a")
    crown(client, name, "a", TUNED, was)
    version("b")
    assert crown(client, name, "b", TUNED, FIGURES) == f"models:/{name}@champion: version 1 → 2{told}"
    assert str(holder()) == "2"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"selected_on": "test"}, "it was selected on 'test', not on 'val' alone"),
        ({"selected_on": None}, "it was selected on None, not on 'val' alone"),
        (
            {"data_fingerprint": "e" * 64},
            "judged otherwise .*wsol.data_fingerprint e{16}, not d{16}",
        ),
        ({"data_fingerprint": None}, "judged otherwise .*wsol.data_fingerprint none, not dddddddddddddddd"),
        ({"protocol": "bas-ext"}, "judged otherwise .*wsol.protocol bas-ext, not wsol-v1"),
        ({"image_size": "32 of 72"}, "judged otherwise .*wsol.image_size 32 of 72, not 64 of 72"),
        ({"model": "another"}, r"No version .* \(there are: 2, 1\) bears the seal b of the model that was judged"),
    ],
)
def test_a_model_that_is_not_what_was_judged_is_no_champion(client, name, version, holder, changes, told):
    version("a")
    crown(client, name, "a", TUNED, FIGURES)
    version("b", **changes)
    with pytest.raises(DataError, match=told):
        crown(client, name, "b", TUNED, FIGURES)
    assert str(holder()) == "1"
    assert "wsol.test.max_box_acc_v2" not in client.get_model_version(name, "2").tags


@pytest.mark.parametrize("tag", sorted(OTHERWISE))
def test_a_champion_of_another_evaluation_is_left_and_the_way_by_hand_is_told(client, name, version, holder, tag):
    version("a", **{tag.removeprefix("wsol."): OTHERWISE[tag]})
    crown(client, name, "a", {**TUNED, tag: OTHERWISE[tag]}, FIGURES)
    version("b")
    with pytest.raises(DataError, match=f"version 1 is, of another evaluation .*{tag}") as refused:
        crown(client, name, "b", TUNED, FIGURES)
    assert str(holder()) == "1"
    by_hand = str(refused.value).split("all the same: ")[1]
    call = "mlflow.MlflowClient().set_registered_model_alias"
    assert by_hand.startswith(call)
    client.set_registered_model_alias(*ast.literal_eval(by_hand.removeprefix(call)))
    assert str(holder()) == "2"


def test_a_study_does_not_begin_under_the_name_of_other_models(client, name, version):
    check_name_is_free(client, "nobody-has-this", TUNED)
    check_name_is_free(client, name, TUNED)
    version("a", protocol="bas-ext")
    check_name_is_free(client, name, TUNED)  # no champion yet
    crown(client, name, "a", {**TUNED, "wsol.protocol": "bas-ext"}, FIGURES)
    with pytest.raises(UsageError, match="a champion of another evaluation .wsol.protocol bas-ext, not wsol-v1"):
        check_name_is_free(client, name, TUNED)
    client.delete_registered_model_alias(name, CHAMPION)
    version("b", model=None)
    with pytest.raises(UsageError, match="versions that no study made .2.: give the study another --name"):
        check_name_is_free(client, name, TUNED)


def test_more_versions_than_a_page_holds_are_all_seen(client, name, version, monkeypatch):
    for number in range(5):
        version(str(number))
    search = client.search_model_versions
    monkeypatch.setattr(client, "search_model_versions", lambda f, page_token: search(f, 2, page_token=page_token))
    assert [registry.find_version(client, name, str(number)).version for number in range(5)] == [1, 2, 3, 4, 5]
