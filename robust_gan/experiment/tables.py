"""The paper's tables over several seeds: white box, black box by source, cost; and a picture of them."""

import statistics
from collections.abc import Sequence
from typing import Any

from robust_gan import report
from robust_gan.experiment import cost, planning, published
from robust_gan.experiment.planning import Plan

WORST = "worst case"


def summarise(plan: Plan, reports: dict[int, dict[str, Any]], costs: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Gathers the reports of all seeds.

    Args:
        plan: The experiment.
        reports: For each seed the record of `comparison.compare`.
        costs: For each seed and contestant what `cost.measure` returned.

    Returns:
        For each contestant `clean`, `white_box` by attack and in the worst case, `black_box` by attack and maker and
        in the worst case, and `cost`; every figure a list over the seeds, accuracies as shares.
    """
    table: dict[str, Any] = {}
    for name in plan.contestants:
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
        reports: For each seed the record of `comparison.compare`.
    """
    first = reports[plan.seeds[0]]
    data, threat = first["data"], first["threat"]
    conditions = (
        f"{data['name']}, {data['split']} split, {data['count']} images; {threat['norm']} epsilon "
        f"{threat['epsilon']:g} for pixels in [0, 1]; budget {plan.budget}; seeds {', '.join(map(str, plan.seeds))}; "
        f"{first['created'][:10]}; {first['device']}; jax {first['versions']['jax']}."
    )
    spread = "Mean and standard deviation over the seeds. " if len(plan.seeds) > 1 else ""
    return (
        "\n\n".join(
            [
                f"# {plan.dataset}",
                conditions,
                f"{spread}Robust accuracy in % of all images; robust is right clean and under attack. The worst case "
                "is taken image by image over all attacks.",
                "## White box",
                _white_box(plan, table),
                "## Black box, by source",
                f"Attack {_strongest(first['attacks'])}, made on the model of the column; the last column is the worst "
                "case over all attacks and all of these sources.",
                _black_box(plan, table, _strongest(first["attacks"])),
                "## Cost",
                _cost(plan, table),
                "## Losses at the end of training",
                "Of the classifier on clean and on adversarial images, of the generator, and the gradient penalty "
                "before its coefficient: means over the last fifth of what was logged, with the batch's statistics.",
                _losses(plan, table),
                *_of_the_paper(plan),
            ]
        )
        + "\n"
    )


def columns(plan: Plan, table: dict[str, Any]) -> dict[str, dict[str, Sequence[float]]]:
    """Returns what the picture shows of each contestant: clean, black box and white box in the worst case."""
    return {
        name: {
            "clean": table[name]["clean"],
            "black box, worst case": table[name]["black_box"][WORST],
            "white box, worst case": table[name]["white_box"][WORST],
        }
        for name in plan.contestants
    }


def figure(values: Sequence[float]) -> str:
    """Returns shares in % as a mean, with the standard deviation where there are several.

    >>> figure([0.5]), figure([0.5, 0.6])
    ('50.0', '55.0 ± 7.1')
    """
    percent = [100 * value for value in values]
    if len(percent) == 1:
        return f"{percent[0]:.1f}"
    return f"{statistics.mean(percent):.1f} ± {statistics.stdev(percent):.1f}"


def _strongest(attacks: Sequence[str]) -> str:
    """The last PGD attack, else the last one of all that can be made on every model."""
    on_all = [attack for attack in attacks if attack != "generator"]
    return ([attack for attack in on_all if attack.startswith("pgd")] or on_all)[-1]


def _white_box(plan, table):
    attacks = list(dict.fromkeys(attack for row in table.values() for attack in row["white_box"]))
    attacks = [*(attack for attack in attacks if attack != WORST), WORST]
    rows = [
        [name, figure(table[name]["clean"])]
        + [figure(table[name]["white_box"][a]) if a in table[name]["white_box"] else "-" for a in attacks]
        + [figure(table[name]["all"])]
        for name in plan.contestants
    ]
    return report.markdown(["contestant", "clean", *attacks, "and black box"], rows)


def _black_box(plan, table, attack):
    makers = [*plan.contestants, *(name for name in planning.STRANGERS if name != planning.SOURCE)]
    rows = []
    for name in plan.contestants:
        by_maker = table[name]["black_box"][attack]
        cells = [figure(by_maker[maker]) if maker in by_maker else "-" for maker in makers]
        rows.append([name, *cells, figure(table[name]["black_box"][WORST])])
    return report.markdown(["contestant", *makers, WORST], rows)


def _cost(plan, table):
    rows = []
    for name in plan.contestants:
        costs = table[name]["cost"]
        seconds = [cost["seconds"] for cost in costs]
        parameters = costs[0]["parameters"]
        rows.append(
            [
                name,
                f"{statistics.mean(seconds):.0f}",
                str(costs[0]["updates"]),
                str(costs[0]["gradient_evaluations"]),
                f"{parameters['classifier']:,}",
                f"{parameters['generator']:,}" if "generator" in parameters else "-",
            ]
        )
    header = ["contestant", "seconds", "updates", "gradients per update", "classifier", "generator"]
    return report.markdown(header, rows)


def _losses(plan, table):
    rows = []
    for name in plan.contestants:
        ends = [paid["losses"] for paid in table[name]["cost"]]
        rows.append([name, *(_spread([end[loss] for end in ends]) if loss in ends[0] else "-" for loss in cost.LOSSES)])
    return report.markdown(["contestant", *(loss.replace("_", " ") for loss in cost.LOSSES)], rows)


def _spread(values):
    mean = f"{statistics.mean(values):.3g}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2g}"


def _of_the_paper(plan):
    white, black = published.WHITE_BOX.get(plan.dataset), published.BLACK_BOX.get(plan.dataset)
    if not white or not black:
        return ["No figures of the paper on these data were at hand."]
    attacks = list(dict.fromkeys(a for part in (white, black) for row in part.values() for a in row if a != "clean"))
    rows = [
        [name, _cell(white[name], "clean"), *(_cell(part[name], a) for part in (white, black) for a in attacks)]
        for name in white
    ]
    header = ["contestant", "clean", *(f"{a}, white box" for a in attacks), *(f"{a}, black box" for a in attacks)]
    return ["## The paper's own figures", f"{published.REFERENCE}.", report.markdown(header, rows)]


def _cell(row, attack):
    return f"{row[attack]:.2f}" if attack in row else "-"
