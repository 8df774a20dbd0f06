"""BibTeX of every method, and how the software is cited."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import wsol_models
from rayjobs import cite
from wsol_models import readouts
from wsol_pipeline.errors import UsageError

ROOT = Path(cite.__file__).parents[1]


def test_every_method_has_its_papers_and_every_entry_is_used():
    assert {*wsol_models.methods(), *readouts.readouts()} - {"own"} <= set(cite.PAPERS)
    used = {key for keys in cite.PAPERS.values() for key in keys} | set(cite.IN_ANY_CASE)
    assert set(cite.entries()) == used


def test_a_method_is_cited_with_the_benchmark_and_the_software(capsys):
    assert cite.main(["bas"]) == 0
    told = capsys.readouterr().out
    assert re.findall(r"^@\w+{(\w+),$", told, re.MULTILINE) == ["wu2022bas", "zhai2024bas", *cite.IN_ANY_CASE]
    with pytest.raises(UsageError, match="Unknown method to cite 'bass'. Did you mean 'bas'?"):
        cite.main(["bass"])


def test_entries_close_and_say_what_they_must():
    for text in cite.entries().values():
        assert text.count("{") == text.count("}")
        assert {"title", "author"} <= set(re.findall(r"^  (\w+) = {", text, re.MULTILINE))
    for key, text in cite.entries().items():
        assert key == "wsol" or re.search(r"year = {(\d+)}", text)[1] in key


def test_papers_of_the_docstrings_are_those_cited():
    """Where a method's file names an arXiv number that its entry has too, the two agree."""
    for method in wsol_models.methods():
        told = Path(wsol_models.__path__[0], f"{method}.py").read_text()
        for key in cite.PAPERS[method]:
            if number := re.search(r"eprint = {(.*)}", cite.entries()[key]):
                assert number[1] in told


def test_the_citation_file_names_this_version():
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (found["cff-version"], found["version"], found["license"]) == ("1.2.0", version, "Apache-2.0")
    assert f"version = {{{version}}}" in cite.entries()["wsol"]
