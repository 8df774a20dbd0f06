r"""Show finished studies, or single models, on one page: what won, why, how sure that is, and where it fails.

    python rayjobs/report.py --study bas cam
    ray job submit --working-dir . -- python rayjobs/report.py \
        --study bas-cub cam-cub --storage s3://bucket/runs

Reads what the jobs have kept and opens no data; figures of the test split are those that evaluate.py has measured.
Beside the page, which is one file that needs no network, lie its tables as Markdown and as LaTeX, its charts as PDF and
SVG, and a table of every test image as every model sees it (Parquet; docs/studies.md explains the columns).
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from wsol_pipeline.console.command_line import command_line
from wsol_pipeline.console.main import run_main
from wsol_pipeline.training.config import check_name, require
from wsol_pipeline.training.options import store_at

if TYPE_CHECKING:
    from wsol_pipeline.storage import Store


@dataclass(frozen=True)
class Options:
    """Which studies to show, and where."""

    study: tuple[str, ...] = ("bas",)
    """Names of finished studies (or runs). The first one's winner is the subject; the others stand beside it."""
    storage: str = "runs"
    """The --storage of those studies."""
    out: str | None = None
    """The page; its tables lie beside it. By default report.html in the first study's folder."""
    study_db: str | None = None
    """SQLAlchemy URL of the studies' database, if they were given one."""

    def __post_init__(self) -> None:
        require(len(self.study) >= 1, "at least one --study is needed", self.study)
        for name in self.study:
            check_name("study", name)
        require(self.out is None or self.out.endswith(".html"), "out must be a name that ends with .html", self.out)

    @property
    def store(self) -> "Store":
        """Where all studies are kept."""
        return store_at(self.storage)


def main(args: list[str] | None = None) -> int:
    options = command_line(Options, args, __doc__)
    from wsol_pipeline.report import figures, images, latex
    from wsol_pipeline.report.facts import gather
    from wsol_pipeline.report.page import render
    from wsol_pipeline.report.significance import compare
    from wsol_pipeline.report.tables import comparison_table, markdown
    from wsol_pipeline.storage import Store
    from wsol_pipeline.tracking import moved

    if options.store.is_local:
        moved.follow(Path(options.store.path(moved.DATABASE)))
    facts = gather(options.store, options.study, options.study_db)
    table, pairs = comparison_table(facts.lines, facts.objective), compare(facts.lines)
    page = Store.at(options.out) if options.out else options.store / options.study[0] / "report.html"
    folder, name = Store(page.uri.removesuffix(f"/{page.name}")), PurePosixPath(page.name).stem
    files = {
        f"{name}.html": render(facts, options.storage).encode(),
        f"{name}.md": markdown(table, pairs).encode(),
        f"{name}.tex": latex.document(facts, pairs).encode(),
        f"{name}-images.parquet": images.parquet(facts),
    }
    drawn = {f"{name}-figures/{file}": data for file, data in figures.files(facts).items()}
    for file, data in (files | drawn).items():
        folder.write(file, data)
    told = {"page": "html", "table": "md", "LaTeX": "tex"}
    for what, ending in told.items():
        print(f"{what:<8} {folder.path(f'{name}.{ending}')}")
    print(f"images   {folder.path(f'{name}-images.parquet')}")
    print(f"figures  {folder.path(f'{name}-figures')} ({len(drawn) // 2}, each as PDF and SVG)")
    return 0


if __name__ == "__main__":
    run_main(main)
