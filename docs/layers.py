"""Draws docs/images/layers.svg from the layers that setup.cfg gives import-linter: `python docs/layers.py`."""

import configparser
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
TITLES = {
    "cli": "commands and their flags",
    "reproduction": "all methods of the paper",
    "training": "the training loop",
    "reporting": "tables, plots, HTML pages",
    "evaluation": "robust accuracy of models",
    "zoo": "shipped models",
    "checkpoint": "data, devices, checkpoints",
    "storage": "files and workdirs",
    "game": "the training step",
    "adversaries": "adversaries in training",
    "attacks": "attacks",
    "networks": "networks and optimizers",
    "losses": "losses",
    "threat_model": "the ball of perturbations",
    "config": "config, random keys, types",
    "errors": "errors, version",
}
PROGRAM = (
    "cli", "reproduction", "training", "reporting", "evaluation", "zoo", "checkpoint", "data", "parallel", "storage",
)  # fmt: skip
WIDTH, LEFT, ROW, CHIP, GAP = 680, 250, 36, 22, 8
STYLE = (
    ".row{fill:#4f6d9a;fill-opacity:.13;stroke:#4f6d9a;stroke-opacity:.55}.title{fill:#6e7f96;font-size:12.5px}"
    ".program{fill:#3f5f94}.library{fill:#2f7d5b}.name{fill:#fff;font:12px ui-monospace,Menlo,Consolas,monospace}"
    "text{font-family:system-ui,sans-serif}"
    "@media(prefers-color-scheme:dark){.title{fill:#a9b7c9}.program{fill:#4a6eab}.library{fill:#3a916b}}"
)


def read_layers() -> list[list[str]]:
    """Returns the packages of each layer, the highest layer first."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    lines = settings["importlinter:contract:layers"]["layers"].split("\n")
    return [[name.strip(" ()") for name in line.split("|")] for line in lines if line.strip()]


def draw(layers: list[list[str]]) -> str:
    """Returns the picture: one row for each layer, the library in green and the program in blue."""
    parts, top = [], 8
    for names in layers:
        title = next((TITLES[name] for name in names if name in TITLES), "")
        parts.append(f'<rect class="row" x="8" y="{top}" width="{WIDTH - 16}" height="{ROW}" rx="6"/>')
        parts.append(f'<text class="title" x="20" y="{top + ROW / 2 + 4:g}">{title}</text>')
        x = LEFT
        for name in names:
            width = 7.25 * len(name) + 14
            kind = "program" if name in PROGRAM else "library"
            parts.append(f'<rect class="{kind}" x="{x:g}" y="{top + 7}" width="{width:g}" height="{CHIP}" rx="4"/>')
            parts.append(f'<text class="name" x="{x + 7:g}" y="{top + 22}">{name}</text>')
            x += width + GAP
        top += ROW + 6
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 2}" role="img">'
    return "\n".join([head, "<title>The layers of robust_gan</title>", f"<style>{STYLE}</style>", *parts, "</svg>", ""])


if __name__ == "__main__":
    (ROOT / "docs" / "images" / "layers.svg").write_text(draw(read_layers()))
