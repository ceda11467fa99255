"""Writes one HTML page of runs, evaluations and reproductions, without server, network or scripts.

The templates are in `templates/`. Without matplotlib the page has its tables and no figures.
"""

import datetime
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import markupsafe
import numpy as np
from etils import epath

from robust_gan.errors import writing
from robust_gan.evaluation import statistics
from robust_gan.reporting import comparison, evaluation_report, plots, tables, threats
from robust_gan.reporting import details as details_lib
from robust_gan.reporting.details import Details
from robust_gan.reporting.record import Evaluation, Found, Run, find
from robust_gan.reporting.tables import Table
from robust_gan.storage import workdir
from robust_gan.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawn

_MAX_CLASSES, _MAX_EXAMPLES = 20, 8
_MAX_POINTS, _MAX_NOISE_STEPS, _MAX_NOISE_RUNS = 240, 10, 8


class Figure(NamedTuple):
    """A figure of the page.

    Attributes:
        title: The text above it.
        svg: Its markup; empty without matplotlib.
        note: The text below it.
    """

    title: str
    svg: markupsafe.Markup
    note: str = ""


def render(found: Found, title: str = "Robustness report") -> str:
    """Returns the page.

    Args:
        found: The runs, evaluations and reproductions to show.
        title: Its title.

    >>> "<section" in render(Found([], [], {}))
    False
    """
    return _render(found, _sections(found), title)


def write(directories: Sequence[epath.PathLike], output: epath.PathLike, csv_folder: epath.PathLike = "") -> epath.Path:
    """Writes the page of all runs and evaluations in some folders.

    Args:
        directories: Of runs, evaluations and reproductions, or above them.
        output: The HTML file.
        csv_folder: A folder in which each table is written as a CSV file too; empty for none.

    Returns:
        The absolute path of the page.

    Raises:
        UserError: See `find`; or a file cannot be written.
    """
    found = find(directories)
    sections = _sections(found)
    path = epath.Path(output).expanduser().resolve()
    contents = {}
    if csv_folder:
        folder = epath.Path(csv_folder).expanduser().resolve()
        contents = {folder / name: tables.to_csv(table) for name, table in _files(sections).items()}
    contents[path] = _render(found, sections)
    for write_file in (False, True):  # No file is written where a folder cannot be made.
        for file, content in contents.items():
            flag, where = ("--output", file) if file == path else ("--csv", file.parent)
            with writing(where, f"give another {flag}"):
                file.parent.mkdir(parents=True, exist_ok=True)
                if write_file:
                    workdir.write_text(file, content)
    return path


def _sections(found: Found) -> list[tuple[str, str, dict[str, Any]]]:
    """Returns the title, the template and the content of each section."""
    colours: dict[str, int] = {}
    for name in [name for one in found.evaluations for name in one.report["models"]]:
        colours.setdefault(name, len(colours))
    for run in found.runs:  # A model and its run have one colour.
        new = 1 + max(colours.values(), default=-1)
        colours.setdefault(run.group, colours.get(os.path.basename(run.folder), new))
    sections: list[tuple[str, str, dict[str, Any]]] = []
    if found.evaluations:
        joined = [threats.table(values) for values in found.threats.values()]
        overview = {"tables": [*joined, *comparison.accuracy_tables(found.evaluations, found.runs)],
                    "paired": comparison.paired_table(found.evaluations),
                    "figures": _curves(found.evaluations, colours)}  # fmt: skip
        sections.append(("Overview", "overview", overview))
    sections += [
        (f"Reproduction {name}", "reproduction", _reproduction(of)) for name, of in found.reproductions.items()
    ]
    if found.runs:
        sections.append(("Training", "training", _training(found.runs, colours)))
    sections += [(f"Evaluation {one.name}", "evaluation", _evaluation(one, colours)) for one in found.evaluations]
    return sections


def _render(found: Found, sections: list[tuple[str, str, dict[str, Any]]], title: str = "Robustness report") -> str:
    counts = {"run": len(found.runs), "evaluation": len(found.evaluations), "reproduction": len(found.reproductions)}
    lead = ", ".join(f"{count} {what}{'s' if count > 1 else ''}" for what, count in counts.items() if count)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("robust_gan.reporting"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template("page.html.j2").render(
        title=title, lead=lead, sections=sections, version=__version__, made=made, theme=plots.THEME,
        intervals=statistics.INTERVALS, about_pairs=statistics.PAIRED, has_figures=plots.can_plot(),
    )  # fmt: skip


def _files(sections: list[tuple[str, str, dict[str, Any]]]) -> dict[str, Table]:
    """Returns the tables of all sections by the names of their CSV files."""
    files: dict[str, Table] = {}
    for title, _, content in sections:
        for key, value in content.items():
            for table in [value] if isinstance(value, Table) else value if isinstance(value, list) else ():
                if isinstance(table, Table) and table.rows:
                    name = re.sub(r"[^a-z0-9]+", "-", f"{title} {table.title or key}".lower()).strip("-")
                    files[f"{len(files) + 1:02d}-{name[:100]}.csv"] = table
    return files


def _figure(title: str, draw: Callable[..., "Drawn"], *args: Any, note: str = "", **kwargs: Any) -> Figure:
    label = markupsafe.escape(title)
    # The SVG of matplotlib has all names escaped.
    svg = plots.to_svg(draw(*args, **kwargs), str(label)) if plots.can_plot() else ""
    return Figure(title, markupsafe.Markup(svg), note)


def _curves(evaluations: Sequence[Evaluation], colours: Mapping[str, int]) -> list[Figure]:
    """Returns robust accuracy against epsilon, one plot for each attack, norm and data set."""
    series: dict[tuple[str, str, str], list[plots.Series]] = {}
    marks: dict[tuple[str, str, str], dict[float, str]] = {}
    for report in (one.report for one in evaluations if one.report.get("curve")):
        found, threat, data = report["curve"], report["threat"], report["data"]
        key = (f"{data['name']} {data['split']}, {data['count']} images", threat["norm"], found["attack"])
        drawn = plots.curve(found["robust_accuracy"], found["epsilons"], data["count"], colours)
        series.setdefault(key, []).extend(line for line in drawn if line not in series.get(key, []))
        marks.setdefault(key, {})[threat["epsilon"]] = f"{threat['epsilon']:.3g}"
    return [
        _figure(
            f"Robust accuracy against epsilon, white-box {attack}, {images}", plots.lines, drawn, percent=True,
            x=f"epsilon ({norm}, pixels in [0, 1])", y="robust accuracy in %", marks=marks[images, norm, attack],
            legend=True, note="Bands: the 95 % interval of each accuracy.",
        )
        for (images, norm, attack), drawn in series.items()
    ]  # fmt: skip


def _reproduction(values: dict[str, Any]) -> dict[str, Any]:
    marks, rows = {}, []
    for method, found in values["methods"].items():
        name, worst = found.get("label", method), "worst case"
        marks[name] = {"clean": found["clean"], "black box, worst case": found["black_box"].get(worst, [None]),
                       "white box, worst case": found["white_box"].get(worst, [None])}  # fmt: skip
        shares = [tables.format_shares(row, values["images"]) for row in marks[name].values()]
        seconds = tables.duration(float(np.mean([cost["seconds"] for cost in found["cost"]])))
        rows.append([name, *shares, seconds, str(found["cost"][0]["gradient_evaluations"])])
    colours = {name: index for index, name in enumerate(marks)}
    picture = _figure("Every method, worst cases", plots.accuracies, marks, colours, values["images"])
    header = ["method", "clean", "black box", "white box", "time", "gradients per update"]
    return {"values": values, "figures": [picture], "table": Table("", header, rows)}


def _evaluation(one: Evaluation, colours: Mapping[str, int]) -> dict[str, Any]:
    report, found = one.report, one.details
    evaluated, fired, skipped = evaluation_report.sort_alarms(report)
    marked, marks = {name: comparison.mark(report, name) for name in report["targets"]}, {}
    for name, target in report["targets"].items():
        row = {"clean": [target["clean_accuracy"]]}
        row |= {attack: [by.get(name)] for attack, by in target["robust_accuracy"].items()}
        row |= {f"after {result['attack']}": [result["robust_accuracy"]] for result in target["sequential"][1:]}
        row |= {f"worst case, {kind.replace('_', ' ')}": [target["worst_case"][kind]]
                for kind in ("white_box", "black_box")}  # fmt: skip
        marks[marked[name]] = row
    title = "Accuracy: clean, under each white-box attack, and in the worst cases"
    note = "Robust: classified correctly clean and under attack; lines are 95 % intervals."
    rows = {label: colours[name] for name, label in marked.items()}
    figures = [_figure(title, plots.accuracies, marks, rows, report["data"]["count"], note=note)]
    if traces := report.get("traces"):
        title = f"Steps of {traces['attack']}, means of {traces['images']} images; dotted: the best loss so far"
        figures.append(_figure(title, plots.traces, traces, colours))
    pairs = [row | {end: marked[row[end]] for end in ("first", "second")} for row in report["paired"]]
    context: dict[str, Any] = {
        "report": report, "evaluated": evaluated, "fired": fired, "skipped": skipped, "figures": figures,
        "tables": _accuracy_tables(report, marked), "found": found, "classes": [], "confusions": [], "examples": None,
        "paired": Table("", statistics.PAIRED_HEADER, statistics.paired_cells(pairs), words=("under",)),
    }  # fmt: skip
    if found is not None:
        in_order = details_lib.SEQUENTIAL
        under = {"the worst case over all white-box attacks": found.robust}
        if report["attacks"] and any(attack == in_order for _, attack in found.predicted):
            under[in_order] = {target: found.predicted[target, in_order] == found.labels for target in marked
                               if (target, in_order) in found.predicted}  # fmt: skip
        made = [attack for attack in (found.attack, *reversed(report["attacks"]))
                if any(attack == name for _, name in found.predicted)]  # fmt: skip
        attacks = [attack for attack in dict.fromkeys((*made[:1], in_order))
                   if any(attack == name for _, name in found.predicted)]  # fmt: skip
        context |= {
            "classes": [_classes(found, name, robust, marked) for name, robust in under.items()],
            "confusions": [table for attack in attacks for table in _confusions(found, attack, marked)],
            "examples": _examples(found),
        }  # fmt: skip
    return context


def _accuracy_tables(report: dict[str, Any], marked: Mapping[str, str]) -> list[Table]:
    """Returns the tables of sequential attacks, and of transfer by attack."""
    made, count, targets = [], report["data"]["count"], report["targets"]
    if in_order := {marked[name]: target["sequential"] for name, target in targets.items() if target["sequential"]}:
        attacks = [result["attack"] for result in next(iter(in_order.values()))]
        shares = [[result["robust_accuracy"] for result in results] for results in in_order.values()]
        title = "Robust accuracy after each sequential attack, in %"
        made.append(tables.shaded(title, "model", list(in_order), attacks, shares, count))
    for attack in report["attacks"] if len(report["models"]) > 1 else ():
        by = {marked[name]: target["robust_accuracy"].get(attack, {}) for name, target in targets.items()}
        sources = [source for source in report["models"] if any(source in row for row in by.values())]
        made.append(tables.shaded(
            f"Transfer of {attack}: robust accuracy in %", "of \\ made on", list(by), sources,
            [[row.get(source) for source in sources] for row in by.values()], count, note="Framed: white-box.",
        )._replace(framed=True))  # fmt: skip
    corrupted = evaluation_report.corruptions(report)
    return [*made, *([corrupted._replace(note=evaluation_report.CORRUPTED)] if corrupted.rows else [])]


def _classes(found: Details, under: str, right: Mapping[str, np.ndarray], marked: Mapping[str, str]) -> Table:
    names, targets = found.label_names, [target for target in marked if target in right]
    robust = {target: details_lib.per_class(found, right[target]) for target in targets}
    shown, note = list(range(len(names))), "In brackets: images of the class; the 95 % interval. Then: robust images."
    if len(names) > _MAX_CLASSES:
        means = np.mean([robust[target] for target in targets], axis=0)
        shown = np.argsort(means, kind="stable")[:_MAX_CLASSES].tolist()
        note += f" The {_MAX_CLASSES} least robust of {len(names)} classes, by the mean over the models."
    counts = np.bincount(found.labels.astype(np.int64), minlength=len(names))
    header = [f"{names[index]} ({counts[index]})" for index in shown]
    shares = [[robust[target][index] for index in shown] for target in targets]
    return tables.shaded(f"Robust accuracy of each class in %, {under}", "model", [marked[name] for name in targets],
                         header, shares, [int(counts[index]) for index in shown], note=note)  # fmt: skip


def _confusions(found: Details, attack: str, marked: Mapping[str, str]) -> list[Table]:
    made, names = [], found.label_names
    for target, label in marked.items():
        title = f"{label} under {attack}"
        if len(names) > _MAX_CLASSES:
            pairs = details_lib.most_confused(found, target, attack, _MAX_CLASSES)
            rows = [[names[true], names[guess] if guess < len(names) else str(guess), str(count)]
                    for true, guess, count in pairs or ()]  # fmt: skip
            header, note = ["true", "predicted", "images"], "The most frequent of many classes."
            made += [Table(title, header, rows, note=note, words=("predicted",))] if rows else []
        elif (counts := details_lib.confusion(found, target, attack)) is not None:
            shares = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).tolist()
            rows = [[name, *(str(count) if count else "" for count in row)]
                    for name, row in zip(names, counts, strict=True)]  # fmt: skip
            made.append(Table(title, ["true \\ predicted", *names], rows, shares=shares, errors=True))
    return made


def _examples(found: Details) -> Figure | None:
    if not found.adversarial:
        return None
    shown = found.positions[:_MAX_EXAMPLES]
    names = dict(enumerate(found.label_names))
    predicted = {}
    for target in found.adversarial:
        row = found.predicted.get((target, found.attack), np.full(len(found.labels), -1))
        predicted[target] = [names.get(int(index)) for index in row[shown]]
    labels = [names[int(label)] for label in found.labels[shown]]
    adversarial = {target: images[: len(shown)] for target, images in found.adversarial.items()}
    return _figure("", plots.examples, found.images[: len(shown)], labels, adversarial, predicted)


def _training(runs: Sequence[Run], colours: Mapping[str, int]) -> dict[str, Any]:
    groups = comparison.group_runs(runs)
    names = [name for run in runs for name in {key for line in run.metrics for key in line}]
    robust = max(sorted(name for name in names if "validation/pgd" in name), key=names.count, default="validation/pgd")
    resumed = [(float(start["step"]), run.name) for run in runs for start in run.starts if start["step"]]
    marks = {step: f"{', '.join(name for at, name in resumed if at == step)} resumed" for step, _ in resumed}
    accuracy = "accuracy in %"
    charts = [
        ("Loss of the classifier on clean images", "train/clean_loss", "cross-entropy"),
        ("Loss of the classifier on adversarial images", "train/adversarial_loss", "cross-entropy"),
        ("Loss of the generator", "train/generator_loss", "generator's loss"),
        ("Clean accuracy, validation", "validation/clean_accuracy", accuracy),
        (f"Robust accuracy, {robust.rpartition('/')[2]}, validation", robust, accuracy),
        ("Learning rate of the classifier", comparison.LEARNING_RATE, "learning rate"),
        ("Gradient norm of the classifier", "train/classifier_gradient_norm", "L2 norm"),
        ("Gradient norm of the generator", "train/generator_gradient_norm", "L2 norm"),
    ]
    raised = {name for run in runs for line in run.metrics for name, value in line.items() if value}
    for name in sorted(name for name in set(names) if name.startswith("health/") or name in raised):
        kind, _, what = name.partition("/")
        if kind in ("health", "warning"):
            charts.append((f"{kind.capitalize()}: {what.replace('_', ' ')}", name, "raised: 1" * (kind == "warning")))
    figures = []
    for title, name, unit in charts:
        if series := _series(groups, colours, name, lambda run, step: float(step)):
            figures.append(_figure(title, plots.lines, series, x="step", y=unit, percent=unit == accuracy, marks=marks))
    if paid := _series(groups, colours, robust, _seconds):
        figures.insert(5, _figure("Robust accuracy against training time", plots.lines, paid, x="seconds of training",
                                  y=accuracy, percent=True))  # fmt: skip
    noise = []
    for run in [run for run in runs if run.noise is not None][:_MAX_NOISE_RUNS]:
        assert run.noise is not None
        steps = list(run.noise.noise)
        places = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _MAX_NOISE_STEPS)).round().astype(int))
        noise.append(_figure(run.name, plots.noise, run.noise, [steps[place] for place in places]))
    return {
        "table": comparison.run_table(runs, robust), "fields": comparison.config_table(runs), "figures": figures,
        "configs": {run.name: json.dumps(run.config, indent=2) for run in runs}, "noise": noise,
        "num_generators": sum(run.noise is not None for run in runs), "several": len(runs) > len(groups),
        "legend": [(group, colours[group] % len(plots.COLOURS)) for group in groups],
    }  # fmt: skip


def _seconds(run: Run, step: int) -> float:
    return sum(line.get("seconds", 0) for line in run.timing if line["step"] <= step)


def _series(
    groups: Mapping[str, Sequence[Run]], colours: Mapping[str, int], name: str, where: Callable[[Run, int], float]
) -> list[plots.Series]:
    """Returns a line for each group with a metric: the mean of its runs at their common steps, and a band."""
    series = []
    for group, members in groups.items():
        found = [
            {line["step"]: float(line[name]) for line in comparison.curves(run) if name in line} for run in members
        ]
        steps = sorted(set.intersection(*(set(values) for values in found)))
        if not steps:
            continue
        values = np.array([[one[step] for step in steps] for one in found])
        xs = np.array([np.mean([where(run, step) for run in members]) for step in steps])
        rows = [xs, values.mean(axis=0), values.min(axis=0), values.max(axis=0)]
        if len(steps) > _MAX_POINTS:
            rows = [np.array([part.mean() for part in np.array_split(row, _MAX_POINTS)]) for row in rows]
        xs, ys, *band = (row.tolist() for row in rows)
        series.append(plots.Series(group, colours[group], xs, ys, *(band if len(members) > 1 else ())))
    return series
