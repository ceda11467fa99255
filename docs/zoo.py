"""Makes the models of robust_gan.zoo and their page.

    python docs/zoo.py                                     # writes the table of docs/zoo.md from the cards
    python docs/zoo.py NAME RUN REPORT COMMAND COMMIT      # adds a model: exports RUN, and writes its card from REPORT

REPORT is the folder of `robust-gan-evaluate --checkpoint=RUN --suite=autoattack`; without that suite the card says that
AutoAttack was not run. COMMAND trained RUN, at COMMIT.
"""

import json
import pathlib
import re
import sys

from robust_gan import attacks, checkpoint, zoo
from robust_gan.checkpoint import exported
from robust_gan.evaluation import statistics

PAGE = pathlib.Path(__file__).parent / "zoo.md"
HEADER = "| model | network | threat model | clean | certified | AutoAttack | alarms |\n|---|---|---|--:|--:|--:|---|\n"
HARDWARE = "two AMD EPYC cores"


def add(name, run, report, command, commit):
    """Exports a run into the package and writes its card."""
    record = checkpoint.read_record(run)
    checkpoint.export(run, exported.FOLDER / f"{name}.safetensors")
    values = json.loads((pathlib.Path(report) / "report.json").read_text())
    (target,) = values["targets"].values()
    count, sequential = values["data"]["count"], target["sequential"]
    measured = [result["attack"] for result in sequential] == ["clean", *attacks.VERSIONS["standard"]]
    config, limit = record.config, values["config"].get("num_examples")
    command_of_evaluation = f"robust-gan-evaluate --checkpoint=zoo:{name} --" + (
        "suite=autoattack" if measured else "attacks=clean"
    )
    if certify := values["config"].get("certify"):
        command_of_evaluation += f" --certify={','.join(certify)}"
    card = {
        "data": values["data"]["name"],
        "split": values["data"]["split"],
        "network": config.classifier.network,
        "method": name.partition("/")[2],
        "seed": config.seed,
        "threat": {"norm": values["threat"]["norm"], "epsilon": values["threat"]["epsilon"]},
        "clean": accuracy(target["clean_accuracy"], count),
        "autoattack": accuracy(sequential[-1]["robust_accuracy"], count) if measured else None,
        "certified": accuracy(target["certified_accuracy"], count) if "certified_accuracy" in target else None,
        "alarms": [alarm["name"] for alarm in target["alarms"] if alarm["fired"]] if target["alarms"] else None,
        "command": command,
        "evaluation": command_of_evaluation + (f" --num_examples={limit}" if limit else ""),
        "commit": commit,
        "hardware": HARDWARE,
        "versions": values["versions"],
        "date": values["created"][:10],
    }
    (exported.FOLDER / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n")


def accuracy(share, count):
    """Returns an accuracy as a card holds it."""
    correct = round(share * count)
    interval = [round(100 * end, 1) for end in statistics.wilson_interval(correct, count)]
    return {"percent": round(100 * correct / count, 1), "correct": correct, "count": count, "interval": interval}


def table():
    """Returns the table of the page, by data set and then by AutoAttack accuracy."""

    def order(name):
        card = zoo.card(name)
        return card["data"], -(card["autoattack"] or {"percent": -1})["percent"]

    return HEADER + "".join(_row(name, zoo.card(name)) for name in sorted(zoo.names(), key=order))


def _row(name, card):
    threat = f"{card['threat']['norm']}, {card['threat']['epsilon']:.4g}"
    cells = [
        f"`{name}`",
        f"`{card['network']}`",
        threat,
        _cell(card["clean"]),
        _cell(card["certified"]),
        _cell(card["autoattack"]),
    ]
    fired = ", ".join(f"`{alarm}`" for alarm in card["alarms"] or []) or "-"
    return f"| {' | '.join([*cells, 'not checked' if card['alarms'] is None else fired])} |\n"


def _cell(accuracy):
    if accuracy is None:
        return "not run"
    low, high = accuracy["interval"]
    return f"{accuracy['percent']:.1f} ({low:.1f} to {high:.1f}), {accuracy['correct']} of {accuracy['count']}"


def fill(text):
    """Returns the text of the page with the table of the cards."""
    return re.sub(re.escape(HEADER) + r"(?:\|.*\n)*", lambda _: table(), text)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        add(*sys.argv[1:])
    PAGE.write_text(fill(PAGE.read_text()))
