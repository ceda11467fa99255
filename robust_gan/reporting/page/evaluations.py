"""The section on evaluations: accuracies, curves, transfer, classes, confusion and examples."""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from robust_gan.evaluation import statistics
from robust_gan.reporting import details as details_lib
from robust_gan.reporting.details import Details
from robust_gan.reporting.page import parts, pixels, svg
from robust_gan.reporting.page.finding import Evaluation
from robust_gan.reporting.page.parts import Palette

_BOXES = ("white_box", "black_box", "all")
_MAX_CLASSES = 20
_MAX_EXAMPLES = 8


def curves(evaluations: Sequence[Evaluation], palette: Palette) -> str:
    """Returns the curves of robust accuracy against epsilon, one plot for each attack, norm and data set.

    Args:
        evaluations: All evaluations of the page.
        palette: The colours of the page.
    """
    pictures: dict[tuple[str, str, str, str], list[svg.Series]] = {}
    marks: dict[tuple[str, str, str, str], float] = {}
    for one in evaluations:
        curve, threat, data = one.report.get("curve"), one.report["threat"], one.report["data"]
        if not curve:
            continue
        key = (data["name"], data["split"], threat["norm"], curve["attack"])
        for name, row in curve["robust_accuracy"].items():
            ends = zip(*(statistics.interval_of(share, data["count"]) for share in row), strict=True)
            line = svg.Series(name, palette[name], curve["epsilons"], row, *ends)
            if line not in pictures.setdefault(key, []):
                pictures[key].append(line)
        marks[key] = threat["epsilon"]
    drawn = []
    for key, series in pictures.items():
        data_name, split, norm, attack = key
        chart = svg.lines(
            series, x=f"epsilon ({norm}, pixels in [0, 1])", y="robust accuracy in %", percent=True,
            mark=(marks[key], f"{marks[key]:.3g}"),
        )  # fmt: skip
        title = f"Robust accuracy against epsilon, white-box {attack}, {data_name} {split}"
        key_of = svg.legend([(one.name, one.colour) for one in series])
        drawn.append(parts.figure(title, chart + key_of, "Bands: the 95 % interval of each accuracy."))
    return f'<div class="figures">{"".join(drawn)}</div>' if drawn else ""


def section(evaluation: Evaluation, palette: Palette) -> str:
    """Returns the section on one evaluation.

    Args:
        evaluation: The evaluation.
        palette: The colours of the page.
    """
    report, found = evaluation.report, evaluation.details
    pieces = [_conditions(report), _alarms(report)]
    figures = [_accuracies(report)]
    figures += [_sequential(report)] if any(target["sequential"] for target in report["targets"].values()) else []
    figures += _transfer(report)
    pieces.append(f'<div class="figures">{"".join(figures)}</div>')
    if cells := statistics.paired_cells(report["paired"]):
        pieces += [
            f"<h3>Paired comparisons</h3><p>{html.escape(statistics.PAIRED)}</p>",
            parts.table(statistics.PAIRED_HEADER, cells, text=2),
        ]
    if found is None:
        pieces.append("<p>This evaluation has no details.npz: classes and examples are unknown.</p>")
        return "".join(pieces)
    pieces += [_classes(report, found), _confusions(report, found), _examples(found)]
    return "".join(pieces)


def summary(evaluations: Sequence[Evaluation]) -> str:
    """Returns the table of the worst cases of all models."""
    rows = [
        [
            name,
            f"{one.report['data']['name']} {one.report['data']['split']}, {one.report['data']['count']}",
            f"{one.report['threat']['norm']} {one.report['threat']['epsilon']:.3g}",
            *(
                statistics.format_accuracy(share, one.report["data"]["count"])
                for share in (target["clean_accuracy"], *(target["worst_case"][box] for box in _BOXES))
            ),
        ]
        for one in evaluations
        for name, target in one.report["targets"].items()
    ]
    header = ["model", "images", "threat", "clean", "white box", "black box", "worst of both"]
    note = f'<p class="note">Accuracy in %; {statistics.INTERVALS}.</p>'
    return parts.table(header, rows, text=3) + note


def _conditions(report: dict[str, Any]) -> str:
    data, threat, settings = report["data"], report["threat"], report["settings"]
    text = (
        f"{data['name']}, {data['split']} split, {data['count']} images; {threat['norm']} epsilon "
        f"{threat['epsilon']:g} for pixels in [0, 1]; seed {settings['seed']}; {report['created'][:10]}; "
        f"{report['device']}; robust_gan {report['versions']['robust_gan']}, jax {report['versions']['jax']}."
    )
    lenient = (
        ""
        if settings.get("batch_norm") != "batch"
        else " BatchNorm with batch statistics, which overestimates robustness."
    )
    return f"<p>{html.escape(text + lenient)}</p>"


def _alarms(report: dict[str, Any]) -> str:
    evaluated = sum(alarm.get("asked", True) for target in report["targets"].values() for alarm in target["alarms"])
    fired = [
        f"<li><b>{html.escape(name)}</b>: <code>{alarm['name']}</code>: {html.escape(alarm['finding'])}</li>"
        for name, target in report["targets"].items()
        for alarm in target["alarms"]
        if alarm["fired"]
    ]
    skipped = [f"{name}: {alarm['name']}: {alarm['finding']}" for name, target in report["targets"].items()
              for alarm in target["alarms"] if not alarm.get("asked", True)]  # fmt: skip
    notes = "".join(f'<p class="quiet">{html.escape(note)}</p>' for note in [*skipped, *report.get("notes", [])])
    if not fired:
        none = f"None of {evaluated} alarms fired." if evaluated else "No alarm was evaluated."
        return f'<p class="quiet">{none}</p>{notes}'
    return (
        f'<aside class="alarms"><p>{len(fired)} of {evaluated} alarms fired: these results are unreliable.</p>'
        f"<ul>{''.join(fired)}</ul></aside>{notes}"
    )


def _accuracies(report: dict[str, Any]) -> str:
    kinds = ["clean", *report["attacks"], "worst case, white box", "worst case, black box"]
    colours = {kind: index for index, kind in enumerate(kinds)}
    rows: list[tuple[str, list[tuple[str, int, list[float]]]]] = []
    for name, target in report["targets"].items():
        shares = {"clean": target["clean_accuracy"]}
        shares |= {attack: by.get(name) for attack, by in target["robust_accuracy"].items()}
        shares["worst case, white box"] = target["worst_case"]["white_box"]
        shares["worst case, black box"] = target["worst_case"]["black_box"]
        rows.append((name, [(kind, colours[kind], [share]) for kind, share in shares.items() if share is not None]))
    shown = [kind for kind in kinds if any(kind == mark[0] for _, marks in rows for mark in marks)]
    key = svg.legend([(kind, colours[kind]) for kind in shown])
    count = report["data"]["count"]
    note = f"Robust: classified correctly clean and under attack, of all {count} images; lines are 95 % intervals."
    title = "Accuracy: clean, under each white-box attack, and in the worst cases"
    return parts.figure(title, svg.dots(rows, count) + key, note)


def _sequential(report: dict[str, Any]) -> str:
    targets = {name: target["sequential"] for name, target in report["targets"].items() if target["sequential"]}
    attacks = [result["attack"] for result in next(iter(targets.values()))]
    shares = [
        [
            next((result["robust_accuracy"] for result in results if result["attack"] == attack), None)
            for attack in attacks
        ]
        for results in targets.values()
    ]
    return parts.figure(
        "Robust accuracy after each sequential attack, in %",
        parts.heat(list(targets), attacks, shares, counts=[report["data"]["count"]] * len(attacks)),
    )


def _transfer(report: dict[str, Any]) -> list[str]:
    figures, targets, sources = [], list(report["targets"]), list(report["models"])
    if len(sources) < 2:
        return []
    for attack in report["attacks"]:
        by = {target: report["targets"][target]["robust_accuracy"].get(attack, {}) for target in targets}
        shown = [source for source in sources if any(source in row for row in by.values())]
        shares = [[by[target].get(source) for source in shown] for target in targets]
        counts = [report["data"]["count"]] * len(shown)
        content = parts.heat(targets, shown, shares, corner="of \\ made on", framed=True, counts=counts)
        figures.append(parts.figure(f"Transfer of {attack}: robust accuracy in %", content, "Framed: white-box."))
    return figures


def _classes(report: dict[str, Any], found: Details) -> str:
    names, targets = found.label_names, [target for target in report["targets"] if target in found.robust]
    robust = {target: details_lib.per_class(found, found.robust[target]) for target in targets}
    shown, note = list(range(len(names))), "Worst case over all white-box attacks, by true class."
    if len(names) > _MAX_CLASSES:
        means = np.nan_to_num(list(robust.values()), nan=2.0).mean(axis=0)  # A class without images comes last.
        order = np.argsort(means, kind="stable")
        shown = order[:_MAX_CLASSES].tolist()
        note += f" The {_MAX_CLASSES} least robust of {len(names)} classes."
    shares = [[robust[target][index] for index in shown] for target in targets]
    counts = [int(np.sum(found.labels == index)) for index in shown]
    heat = parts.heat(targets, [names[index] for index in shown], shares, counts=counts)
    return parts.figure("Robust accuracy of each class, in %", heat, f"{note} Below: 95 % intervals.").replace(
        "<figure>", '<figure class="wide">', 1
    )


def _confusions(report: dict[str, Any], found: Details) -> str:
    attacks = [attack for attack in (found.attack, *reversed(report["attacks"]), details_lib.SEQUENTIAL)
               if any((target, attack) in found.predicted for target in report["targets"])]  # fmt: skip
    if not attacks:
        return ""
    figures = []
    for target in report["targets"]:
        if len(found.label_names) > _MAX_CLASSES:
            pairs = details_lib.most_confused(found, target, attacks[0], _MAX_CLASSES)
            if pairs is None:
                continue
            content, note = _most_confused(found.label_names, pairs), "The most frequent of many classes."
        else:
            counts = details_lib.confusion(found, target, attacks[0])
            if counts is None:
                continue
            shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
            content = parts.heat(found.label_names, found.label_names, shares.tolist(), corner="true \\ predicted",
                                 errors=True)  # fmt: skip
            note = ""
        figures.append(parts.figure(target, content, note))
    if not figures:
        return ""
    attack = html.escape(attacks[0])
    return (
        f"<h3>Confusion under {attack}</h3><p>Share of the images of each true class in %, by predicted class.</p>"
        f'<div class="figures">{"".join(figures)}</div>'
    )


def _most_confused(names: Sequence[str], pairs: Sequence[tuple[int, int, int]]) -> str:
    named = [
        names[predicted_class] if predicted_class < len(names) else str(predicted_class)
        for _, predicted_class, _ in pairs
    ]
    rows = [[names[true], name, str(count)] for (true, _, count), name in zip(pairs, named, strict=True)]
    return parts.table(["true", "predicted", "images"], rows, text=2)


def _examples(found: Details) -> str:
    if not found.adversarial:
        return ""
    targets, count = list(found.adversarial), min(len(found.positions), _MAX_EXAMPLES)
    largest = max(float(np.abs(images - found.images).max()) for images in found.adversarial.values()) or 1.0
    head = "".join(f'<th colspan="2">{html.escape(target)}</th>' for target in targets)
    body = []
    for row in range(count):
        true = found.label_names[int(found.labels[found.positions[row]])]
        cells = [f"<td>{pixels.picture(found.images[row], 'clean')}<span>{html.escape(true)}</span></td>"]
        for target in targets:
            made, predicted_class = found.adversarial[target][row], _predicted(found, target, row)
            kind = "" if predicted_class is None else ' class="right"' if predicted_class == true else ' class="wrong"'
            mark = "" if predicted_class is None else f"{predicted_class} {'✓' if predicted_class == true else '✗'}"
            cells.append(f"<td>{pixels.picture(made, 'adversarial')}<span{kind}>{html.escape(mark)}</span></td>")
            cells.append(f"<td>{pixels.noise((made - found.images[row]) / largest, 'perturbation')}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f"<h3>Examples under {html.escape(found.attack)}</h3><p>Adversarial images, predictions, and "
        f'perturbations, {1 / largest:.2g} times enlarged.</p><figure class="wide"><div class="scroll">'
        f'<table class="film"><thead><tr><th>clean</th>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
        "</figure>"
    )


def _predicted(found: Details, target: str, row: int) -> str | None:
    predicted = found.predicted.get((target, found.attack))
    index = -1 if predicted is None else int(predicted[found.positions[row]])
    return found.label_names[index] if 0 <= index < len(found.label_names) else None
