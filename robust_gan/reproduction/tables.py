"""Tables over several seeds: white box, black box by source, paired comparisons, cost; and a picture of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from robust_gan.evaluation import statistics
from robust_gan.reporting import tables
from robust_gan.reproduction import cost, paper_results
from robust_gan.reproduction.plan import SOURCE, SURROGATES, Plan

WORST = "worst case"
_BASELINE = "pgd"
"""The others are compared with it; without it, with the first method."""


def summarise(plan: Plan, reports: dict[int, dict[str, Any]], costs: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Gathers the reports of all seeds.

    Args:
        plan: The experiment.
        reports: For each seed the record of `reporting.run.compare`.
        costs: For each seed and method what `cost.measure` returned.

    Returns:
        For each method its `label`, and `clean`, `white_box` by attack and in the worst case, `black_box` by attack
        and maker and in the worst case, and `cost`; every figure a list over the seeds, accuracies as shares.
    """
    table: dict[str, Any] = {}
    for name in plan.methods:
        targets = [reports[seed]["targets"][name] for seed in plan.seeds]
        of_all = reports[plan.seeds[0]]["attacks"]
        attacks = [attack for attack in of_all if name in targets[0]["robust_accuracy"].get(attack, {})]
        makers = [maker for maker in reports[plan.seeds[0]]["models"] if maker != name]
        black_box: dict[str, Any] = {
            attack: {
                maker: [target["robust_accuracy"][attack][maker] for target in targets]
                for maker in makers
                if maker in targets[0]["robust_accuracy"].get(attack, {})
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
        table: What `summarise` returned.
        reports: For each seed the record of `reporting.run.compare`.
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
                f"{spread}. Robust accuracy in % of all {count} images; robust is right clean and under attack. The "
                f"worst case is taken image by image over all attacks.{_naming(plan)}",
                "## White box",
                _white_box(plan, table, count),
                "## Black box, by source",
                f"Attack {_strongest(first['attacks'])}, made on the model of the column; the last column is the worst "
                "case over all attacks and all of these sources.",
                _black_box(plan, table, _strongest(first["attacks"]), count),
                *_paired(plan, table, first),
                "## Cost",
                _cost(plan, table),
                "## Losses at the end of training",
                "Of the classifier on clean and on adversarial images, of the generator, and the gradient penalty "
                "before its coefficient: means over the last fifth of what was logged, with the batch's statistics.",
                _losses(plan, table),
                *_second_hand(plan),
            ]
        )
        + "\n"
    )


def columns(plan: Plan, table: dict[str, Any]) -> dict[str, dict[str, Sequence[float]]]:
    """Returns what the picture shows of each method: clean, black box and white box in the worst case."""
    return {
        table[name]["label"]: {
            "clean": table[name]["clean"],
            "black box, worst case": table[name]["black_box"][WORST],
            "white box, worst case": table[name]["white_box"][WORST],
        }
        for name in plan.methods
    }


def figure(values: Sequence[float | None], count: int) -> str:
    """Returns shares in %: one with its interval, of several the mean and the standard deviation.

    Args:
        values: One for each seed; a dash is returned where one is missing.
        count: Of how many images.

    >>> figure([0.5], 100), figure([0.5, 0.6], 100), figure([None], 100)
    ('50.0 (40.4 to 59.6)', '55.0 ± 7.1', '-')
    """
    given = [value for value in values if value is not None]
    if len(given) < len(values):
        return "-"
    if len(given) == 1:
        return statistics.format_accuracy(given[0], count)
    return f"{100 * np.mean(given):.1f} ± {100 * np.std(given, ddof=1):.1f}"


def label(plan: Plan, name: str) -> str:
    """Returns the name of a method in the tables: the plain generator's says what it sees, and its penalty.

    Args:
        plan: The experiment.
        name: Of the method. One is called `released` only where the networks, the optimisers and the schedule are
            those of the released code too, not its penalty alone: see `is_released`.

    >>> import functools
    >>> from robust_gan.config import datasets
    >>> digits = functools.partial(datasets.get_config, "digits")
    >>> label(planning.plan(digits, "digits", "debug", "out", methods=["generator"]), "generator")
    'image-only generator (+ exact penalty)'
    """
    if name not in ("generator", "released") or (name == "released" and is_released(plan)):
        return name
    penalty = plan.runs[plan.seeds[0], name].penalty
    sign = "+" if penalty.coefficient > 0 else "-"
    told = f"{sign} {penalty.form.replace('_', ' ')} penalty" if penalty.coefficient else "no penalty"
    return f"image-only generator ({told})"


def is_released(plan: Plan) -> bool:
    """Returns whether an experiment has the networks, the optimisers and the schedule of the released code.

    CIFAR-100's folder is missing from it.

    Args:
        plan: The experiment.
    """
    return plan.budget == "paper" and plan.dataset in ("cifar10", "cifar10_wide", "svhn", "mnist")


def _naming(plan):
    labels = {name: label(plan, name) for name in plan.methods}
    return "".join(f" The method `{name}` is the {told}." for name, told in labels.items() if told != name)


def _strongest(attacks: Sequence[str]) -> str:
    """The last PGD attack, else the last one of all that can be made on every model."""
    on_all = [attack for attack in attacks if attack != "generator"]
    return ([attack for attack in on_all if attack.startswith("pgd")] or on_all)[-1]


def _white_box(plan, table, count):
    attacks = list(dict.fromkeys(attack for row in table.values() for attack in row["white_box"]))
    attacks = [*(attack for attack in attacks if attack != WORST), WORST]
    rows = [
        [label(plan, name), figure(table[name]["clean"], count)]
        + [figure(table[name]["white_box"].get(attack, [None]), count) for attack in attacks]
        + [figure(table[name]["all"], count)]
        for name in plan.methods
    ]
    return tables.markdown(["method", "clean", *attacks, "and black box"], rows)


def _black_box(plan, table, attack, count):
    makers = [*plan.methods, *(name for name in SURROGATES if name != SOURCE)]
    rows = []
    for name in plan.methods:
        by_maker = table[name]["black_box"][attack]
        cells = [figure(by_maker.get(maker, [None]), count) for maker in makers]
        rows.append([label(plan, name), *cells, figure(table[name]["black_box"][WORST], count)])
    names = [label(plan, maker) if maker in plan.methods else maker for maker in makers]
    return tables.markdown(["method", *names, WORST], rows)


def _paired(plan, table, first):
    """Compares each method with the baseline: over the images of one seed, or over several seeds."""
    base = _BASELINE if _BASELINE in plan.methods else plan.methods[0]
    others = [name for name in plan.methods if name != base]
    if not others:
        return []
    if len(plan.seeds) == 1:
        told = f"Each method and {label(plan, base)}. {statistics.PAIRED}"
        cells = statistics.paired_cells(
            [row for row in first.get("paired", ()) if base in (row["first"], row["second"])]
        )
        return ["## Paired comparisons", told, tables.markdown(statistics.PAIRED_HEADER, cells)] if cells else []
    kinds = {
        "clean": lambda row: row["clean"],
        f"{WORST}, white box": lambda row: row["white_box"][WORST],
        f"{WORST}, black box": lambda row: row["black_box"][WORST],
    }
    told = (
        f"Accuracy minus that of {label(plan, base)} trained with the same seed, in points: mean over the seeds, its "
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
    return ["## Paired comparisons", told, tables.markdown(["method", *kinds], rows)]


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


def _second_hand(plan):
    white, black = paper_results.WHITE_BOX.get(plan.dataset), paper_results.BLACK_BOX.get(plan.dataset)
    if not white or not black:
        return ["No published figures on these data were at hand."]
    attacks = list(dict.fromkeys(a for part in (white, black) for row in part.values() for a in row if a != "clean"))
    rows = [
        [name, _cell(white[name], "clean"), *(_cell(part[name], a) for part in (white, black) for a in attacks)]
        for name in white
    ]
    header = ["method", "clean", *(f"{a}, white box" for a in attacks), *(f"{a}, black box" for a in attacks)]
    return ["## Published figures, second-hand", f"{paper_results.REFERENCE}.", tables.markdown(header, rows)]


def _cell(row, attack):
    return f"{row[attack]:.2f}" if attack in row else "-"
