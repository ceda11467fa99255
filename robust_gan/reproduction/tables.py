"""Tables over several seeds: white-box, black-box by source, paired comparisons, cost."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from robust_gan.evaluation import statistics
from robust_gan.reporting import tables
from robust_gan.reproduction import cost, paper_results
from robust_gan.reproduction.plan import SOURCE, SURROGATES, Plan

WORST = "worst case"
_BASELINE = "pgd"
"""The method that the others are compared with; without it, the first method."""


def summarise(plan: Plan, reports: dict[int, dict[str, Any]], costs: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Collects the reports of all seeds.

    Args:
        plan: The experiment.
        reports: For each seed the record of the evaluation.
        costs: For each seed and method the output of `cost.measure`.

    Returns:
        For each method its `label`, and `clean`, `white_box` by attack and in the worst case, `black_box` by attack
        and source and in the worst case, and `cost`; every value is a list over the seeds, accuracies are shares.
    """
    table: dict[str, Any] = {}
    for name in plan.methods:
        targets = [reports[seed]["targets"][name] for seed in plan.seeds]
        of_all = reports[plan.seeds[0]]["attacks"]
        attacks = [attack for attack in of_all if name in targets[0]["robust_accuracy"].get(attack, {})]
        sources = [source for source in reports[plan.seeds[0]]["models"] if source != name]
        black_box: dict[str, Any] = {
            attack: {
                source: [target["robust_accuracy"][attack][source] for target in targets]
                for source in sources
                if source in targets[0]["robust_accuracy"].get(attack, {})
            }
            for attack in of_all
        }
        table[name] = {
            "label": label(plan, name),
            "clean": [target["clean_accuracy"] for target in targets],
            "white_box": {attack: [target["robust_accuracy"][attack][name] for target in targets] for attack in attacks}
            | {WORST: [target["worst_case"]["white_box"] for target in targets]},
            "black_box": black_box | {WORST: [target["worst_case"]["black_box"] for target in targets]},
            "all": [target["worst_case"]["all"] for target in targets],
            "cost": [costs[seed][name] for seed in plan.seeds],
        }
    return table


def write_up(plan: Plan, table: dict[str, Any], reports: dict[int, dict[str, Any]]) -> str:
    """Returns the tables as Markdown.

    Args:
        plan: The experiment.
        table: The output of `summarise`.
        reports: For each seed the record of the evaluation.
    """
    first = reports[plan.seeds[0]]
    data, threat = first["data"], first["threat"]
    conditions = (
        f"{data['name']}, {data['split']} split, {data['count']} images; {threat['norm']} epsilon "
        f"{threat['epsilon']:g} for pixels in [0, 1]; budget {plan.budget}; seeds {', '.join(map(str, plan.seeds))}; "
        f"{first['created'][:10]}; {first['device']}; jax {first['versions']['jax']}."
    )
    spread = (
        "Mean and standard deviation over the seeds" if len(plan.seeds) > 1 else f"One seed; {statistics.INTERVALS}"
    )
    count = data["count"]
    return (
        "\n\n".join(
            [
                f"# {plan.dataset}",
                conditions,
                f"{spread}. Robust accuracy in % of all {count} images; robust: classified correctly clean and under "
                f"attack. The worst case is image by image over all attacks.{_naming(plan)}",
                "## White-box accuracy",
                _white_box(plan, table, count),
                "## Black-box accuracy by source",
                f"Attack {_strongest(first['attacks'])}, on the model of the column; the last column is the worst "
                "case over all attacks and sources.",
                _black_box(plan, table, _strongest(first["attacks"]), count),
                *_paired(plan, table, first),
                "## Cost",
                _cost(plan, table),
                "## Losses at the end of training",
                "Classifier on clean and on adversarial images, generator, and gradient penalty without its "
                "coefficient: means over the last fifth of the log, with batch statistics.",
                _losses(plan, table),
                *_published(plan),
            ]
        )
        + "\n"
    )


def columns(plan: Plan, table: dict[str, Any]) -> dict[str, dict[str, Sequence[float]]]:
    """Returns the accuracies of each method in the plot: clean, black-box and white-box worst case."""
    return {
        table[name]["label"]: {
            "clean": table[name]["clean"],
            "black box, worst case": table[name]["black_box"][WORST],
            "white box, worst case": table[name]["white_box"][WORST],
        }
        for name in plan.methods
    }


def label(plan: Plan, name: str) -> str:
    """Returns the name of a method in the tables; for the image-only generator with its penalty.

    Args:
        plan: The experiment.
        name: The method. `released` is used only if networks, optimizers and schedule are also those of the released
            code, see `is_released`.

    >>> import functools
    >>> from robust_gan import reproduction
    >>> from robust_gan.config import datasets
    >>> digits = functools.partial(datasets.get_config, "digits")
    >>> label(reproduction.plan(digits, "digits", "debug", "out", methods=["generator"]), "generator")
    'image-only generator (+ exact penalty)'
    """
    if name not in ("generator", "released") or (name == "released" and is_released(plan)):
        return name
    penalty = plan.runs[plan.seeds[0], name].penalty
    sign = "+" if penalty.coefficient > 0 else "-"
    penalty_label = f"{sign} {penalty.form.replace('_', ' ')} penalty" if penalty.coefficient else "no penalty"
    return f"image-only generator ({penalty_label})"


def is_released(plan: Plan) -> bool:
    """Returns whether an experiment has the networks, optimizers and schedule of the released code.

    The released code has no folder for CIFAR-100.

    Args:
        plan: The experiment.
    """
    return plan.budget == "paper" and plan.dataset in ("cifar10", "cifar10_wide", "svhn", "mnist")


def _naming(plan):
    labels = {name: label(plan, name) for name in plan.methods}
    return "".join(f" The method `{name}` is the {text}." for name, text in labels.items() if text != name)


def _strongest(attacks: Sequence[str]) -> str:
    """Returns the last PGD attack, otherwise the last attack on every model."""
    on_all = [attack for attack in attacks if attack != "generator"]
    return ([attack for attack in on_all if attack.startswith("pgd")] or on_all)[-1]


def _white_box(plan, table, count):
    attacks = list(dict.fromkeys(attack for row in table.values() for attack in row["white_box"]))
    attacks = [*(attack for attack in attacks if attack != WORST), WORST]
    rows = [
        [label(plan, name), tables.format_shares(table[name]["clean"], count)]
        + [tables.format_shares(table[name]["white_box"].get(attack, [None]), count) for attack in attacks]
        + [tables.format_shares(table[name]["all"], count)]
        for name in plan.methods
    ]
    return tables.markdown(["method", "clean", *attacks, "and black box"], rows)


def _black_box(plan, table, attack, count):
    sources = [*plan.methods, *(name for name in SURROGATES if name != SOURCE)]
    rows = []
    for name in plan.methods:
        by_source = table[name]["black_box"][attack]
        cells = [tables.format_shares(by_source.get(source, [None]), count) for source in sources]
        rows.append([label(plan, name), *cells, tables.format_shares(table[name]["black_box"][WORST], count)])
    names = [label(plan, source) if source in plan.methods else source for source in sources]
    return tables.markdown(["method", *names, WORST], rows)


def _paired(plan, table, first):
    """Returns paired comparisons of each method with the baseline: over the images of one seed, or over seeds."""
    base = _BASELINE if _BASELINE in plan.methods else plan.methods[0]
    others = [name for name in plan.methods if name != base]
    if not others:
        return []
    if len(plan.seeds) == 1:
        text = f"Each method and {label(plan, base)}. {statistics.PAIRED}"
        cells = statistics.paired_cells(
            [row for row in first.get("paired", ()) if base in (row["first"], row["second"])]
        )
        return ["## Paired comparisons", text, tables.markdown(statistics.PAIRED_HEADER, cells)] if cells else []
    kinds = {
        "clean": lambda row: row["clean"],
        f"{WORST}, white box": lambda row: row["white_box"][WORST],
        f"{WORST}, black box": lambda row: row["black_box"][WORST],
    }
    text = (
        f"Difference to {label(plan, base)} with the same seed, in percentage points: mean over seeds, its "
        "95 % interval, and the p-value of the paired t-test, not corrected for the number of methods."
    )

    def against_base(name, of):
        pair = of(table[name]), of(table[base])
        if any(share is None for shares in pair for share in shares):
            return "-"
        *interval, p_value = statistics.paired_over_seeds(*pair)
        difference, ends = statistics.format_difference(*interval)
        return f"{difference} ({ends}), p {statistics.format_p(p_value)}"

    rows = [[label(plan, name), *(against_base(name, of) for of in kinds.values())] for name in others]
    return ["## Paired comparisons", text, tables.markdown(["method", *kinds], rows)]


def _cost(plan, table):
    rows = []
    for name in plan.methods:
        costs = table[name]["cost"]
        seconds = [cost["seconds"] for cost in costs]
        parameters = costs[0]["parameters"]
        rows.append(
            [
                label(plan, name),
                f"{np.mean(seconds):.0f}",
                str(costs[0]["updates"]),
                str(costs[0]["gradient_evaluations"]),
                f"{parameters['classifier']:,}",
                f"{parameters['generator']:,}" if "generator" in parameters else "-",
            ]
        )
    header = ["method", "seconds", "updates", "gradients per update", "classifier", "generator"]
    return tables.markdown(header, rows)


def _losses(plan, table):
    rows = []
    for name in plan.methods:
        ends = [paid["losses"] for paid in table[name]["cost"]]
        rows.append(
            [
                label(plan, name),
                *(_spread([end[loss] for end in ends]) if loss in ends[0] else "-" for loss in cost.LOSSES),
            ]
        )
    return tables.markdown(["method", *(loss.replace("_", " ") for loss in cost.LOSSES)], rows)


def _spread(values):
    mean = f"{np.mean(values):.3g}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.2g}"


def _published(plan):
    white, black = paper_results.WHITE_BOX.get(plan.dataset), paper_results.BLACK_BOX.get(plan.dataset)
    if not white or not black:
        return ["No published results on these data were available."]
    attacks = list(dict.fromkeys(a for part in (white, black) for row in part.values() for a in row if a != "clean"))
    rows = [
        [name, _cell(white[name], "clean"), *(_cell(part[name], a) for part in (white, black) for a in attacks)]
        for name in white
    ]
    header = ["method", "clean", *(f"{a}, white box" for a in attacks), *(f"{a}, black box" for a in attacks)]
    return ["## Published results, second-hand", f"{paper_results.REFERENCE}.", tables.markdown(header, rows)]


def _cell(row, attack):
    return f"{row[attack]:.2f}" if attack in row else "-"
