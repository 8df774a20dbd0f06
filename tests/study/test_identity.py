"""A study's id is its own, wherever its name is used twice."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from wsol_pipeline.errors import DataError
from wsol_pipeline.storage import Store
from wsol_pipeline.study.identity import check_folders_are_known, home, settle
from wsol_pipeline.study.lease import Lease


def test_an_id_is_made_once_by_however_many(tmp_path):
    folder = Store.at(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        homes = set(pool.map(lambda _: home(folder), range(8)))
    assert len(homes) == 1
    assert homes == {home(folder)}
    assert home(folder).storage == folder.uri
    assert home(folder / "another").id != home(folder).id


def test_files_say_where_they_have_been(tmp_path):
    folder = Store.at(tmp_path / "a")
    assert home(folder).before == ()
    for name in ("b", "c", "b"):
        before = home(folder)
        (tmp_path / folder.name).rename(tmp_path / name)
        folder = Store.at(tmp_path / name)
        own = home(folder)
        assert (own.id, own.storage, own.before[-1]) == (before.id, folder.uri, before.storage)
        settle(folder, own, Lease(folder / "lease", 1))
    assert home(folder).before == tuple(str(tmp_path / name) for name in ("a", "c"))


@pytest.mark.parametrize("text", [b"", b"[]", b"{}"])
def test_a_damaged_id_is_named(tmp_path, text):
    Store.at(tmp_path).write("study.json", text)
    with pytest.raises(DataError, match="study.json is damaged"):
        home(Store.at(tmp_path))


def test_a_trial_s_folder_that_the_database_does_not_know_is_refused_by_name(tmp_path):
    folder = Store.at(tmp_path)
    for name in ("0000/attempt-0001/seal.json", "0002/attempt-0001/final/seal.json", "0003/lives.json"):
        folder.write(f"trials/{name}", b"")
    folder.write("trials/notes.txt", b"")
    check_folders_are_known(folder, 4)
    with pytest.raises(
        DataError, match="trials/0002 is of a trial that the study's database, which knows 2, has never"
    ):
        check_folders_are_known(folder, 2)
