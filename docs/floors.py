"""Draws docs/images/floors.svg out of the floors that tests/test_layout.py holds: `python docs/floors.py`."""

import pathlib
import runpy

ROOT = pathlib.Path(__file__).resolve().parents[1]
TITLES = {
    8: "commands: flags, no logic",
    7: "experiments, the command line",
    6: "training: the loop",
    5: "evaluation, reports, folders of runs",
    4: "data, devices, checkpoints",
    3: "the game and who plays it",
    2: "networks and attacks",
    1: "mathematics: unreduced and pure",
    0: "words: configuration, types",
}
WIDTH, LEFT, ROW, CHIP, GAP = 880, 268, 30, 22, 6
STYLE = (
    ".floor{fill:#4f6d9a;fill-opacity:.13;stroke:#4f6d9a;stroke-opacity:.55}.title{fill:#6e7f96;font-size:12.5px}"
    ".chip{fill:#3f5f94}.name{fill:#fff;font:12px ui-monospace,Menlo,Consolas,monospace}"
    "text{font-family:system-ui,sans-serif}"
    "@media(prefers-color-scheme:dark){.title{fill:#a9b7c9}.chip{fill:#4a6eab}}"
)


def draw(floors: dict[str, float]) -> str:
    """Returns the picture of modules on floors; imports go down only, within a floor from right to left."""
    rows = {int(floor): [] for floor in floors.values()}
    for name, floor in sorted(floors.items(), key=lambda item: item[1]):
        rows[int(floor)].append(name)
    rows[8] = ["launch/*.py"]
    parts, top = [], 8
    for floor in sorted(rows, reverse=True):
        lines, line, used = [], [], LEFT
        for name in rows[floor]:
            width = 7.25 * len(name) + 14
            if used + width > WIDTH - 12:
                lines.append(line)
                line, used = [], LEFT
            line.append((name, used, width))
            used += width + GAP
        lines.append(line)
        height = ROW * len(lines) + 8
        parts.append(f'<rect class="floor" x="8" y="{top}" width="{WIDTH - 16}" height="{height}" rx="6"/>')
        parts.append(f'<text class="title" x="20" y="{top + height / 2 + 4:g}">{floor}  {TITLES[floor]}</text>')
        for index, line in enumerate(lines):
            y = top + 8 + ROW * index
            for name, x, width in line:
                parts.append(f'<rect class="chip" x="{x:g}" y="{y}" width="{width:g}" height="{CHIP}" rx="4"/>')
                parts.append(f'<text class="name" x="{x + 7:g}" y="{y + 15}">{name}</text>')
        top += height + 6
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 2}" role="img">'
    return "\n".join([head, "<title>The floors of robust_gan</title>", f"<style>{STYLE}</style>", *parts, "</svg>", ""])


if __name__ == "__main__":
    layout = runpy.run_path(str(ROOT / "tests" / "test_layout.py"))
    (ROOT / "docs" / "images" / "floors.svg").write_text(draw(layout["FLOORS"]))
