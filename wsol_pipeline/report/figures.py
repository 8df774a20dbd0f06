"""A report's charts as files for papers and slides: each as PDF and as SVG."""

from wsol_pipeline.report import charts
from wsol_pipeline.report.charts import Chart
from wsol_pipeline.report.facts import Facts
from wsol_pipeline.report.summary import by_size, gain, size_edges

KINDS = ("pdf", "svg")


def files(facts: Facts) -> dict[str, bytes]:
    """{name: file} of every chart that there is something to draw for."""
    return {f"{name}.{kind}": made.file(kind) for name, made in _charts(facts).items() for kind in KINDS}


def _charts(facts: Facts) -> dict[str, Chart]:
    main, objective, steps = facts.main, facts.objective, gain(facts)
    found = {"comparison": charts.comparison(facts.lines, facts.measure), "thresholds": charts.threshold_curves(main)}
    if steps:
        found["training-or-readout"] = charts.steps(steps, facts.measure)
    if len(main.val.settings) > 1:
        found["readout-settings"] = charts.settings_curve(main.val, main.choice, objective)
        found["readout-surface"] = charts.surface(main.val, main.choice, objective, "winner")
    for search in facts.searches:
        names = sorted({name for trial in search.trials for name in trial.params})
        found |= {f"{search.name}-{name}": charts.sensitivity(search, name, objective) for name in names}
        if several := search.several:
            for k, other in enumerate(several.rule.objectives[1:], start=1):
                found[f"{search.name}-front-{other}"] = charts.front(search, several, k)
    seen = [line for line in facts.lines if line.cases]
    if seen:
        edges = size_edges(seen[-1].cases)
        found["overlaps"] = charts.iou_distribution(seen)
        found["sizes"] = charts.accuracy_by_size({line.row.label: by_size(line.cases, edges) for line in seen})
    return found
