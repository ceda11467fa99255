"""The table of docs/errors.md: its rows, and the folder in which its commands are mistakes."""

import json
import pathlib
import re
import shutil
from typing import NamedTuple

import numpy as np
import PIL.Image
import safetensors.numpy

from robust_gan import checkpoint
from robust_gan.checkpoint import metadata
from robust_gan.version import __version__

PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "errors.md"

RECIPES = {
    "BINARY.py": b"\xff\xfe\x00",
    "LATIN.py": b"name = 'caf\xe9'\n",
    "BOOM.py": b"def get_config():\n    raise RuntimeError('boom')\n",
    "CUT.py": b"def get_config(:\n",
    "EMPTY.py": b"",
    "EXITS.py": b"raise SystemExit(1)\n",
    "TRUNCATED.safetensors": b"\x90\0\0\0",
    "FOREIGN.safetensors": safetensors.numpy.save({"weight": np.zeros(2, np.float32)}),
    "DICT.py": b"def get_config():\n    return {'seed': 1}\n",
    "FLOAT.py": b"from robust_gan.config import Config\ndef get_config():\n    return Config(batch_size=6.5)\n",
}


class Row(NamedTuple):
    """A mistake: what is typed, what is said, how it ends."""

    command: str
    sentence: str
    code: int


def rows():
    """Reads the table."""
    found = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)]
        if len(cells) == 5 and re.match(r"`\w+\.py\b", cells[1]):
            command, sentence = (cell.strip("`").replace("\\|", "|") for cell in cells[1:3])
            found.append(Row(command, sentence, int(cells[3])))
    return found


def pattern(sentence):
    """Returns what matches a sentence whose variable parts are written as dots."""
    return re.escape(sentence).replace("…", ".*")


def make(folder, run):
    """Makes what the names in capitals stand for."""
    names = {"NEW": folder / "new", "RUN": run}
    for name, content in RECIPES.items():
        (folder / name).write_bytes(content)
        names[name] = folder / name
    (folder / "FILE").write_text("mine")
    (folder / "EMPTY").mkdir()
    (folder / "LINK").symlink_to(folder / "nosuch")
    for name, content in {
        "GARBLED": "{",
        "NEWER": json.dumps({"robust_gan": f"9{__version__}", "of_the_future": 1}),
    }.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(content)
    for name, change in {
        "RENAMED": lambda saved: saved["config"].update(sead=saved["config"].pop("seed")),
        "FORMAT": lambda saved: saved.update(format=saved["format"] + 1),
    }.items():
        shutil.copytree(run, folder / name)
        for path in (folder / name / checkpoint.FOLDER).glob("*/config/metadata"):
            saved = json.loads(path.read_text())
            change(saved)
            path.write_text(json.dumps(metadata.signed(saved)))
    names |= _make_data(folder)
    names |= {name: folder / name for name in ("FILE", "EMPTY", "LINK", "GARBLED", "NEWER", "RENAMED", "FORMAT")}
    return names


def _make_data(folder):
    """Makes images and labels that cannot be trained on."""
    images = np.full((6, 8, 8, 1), 9, np.uint8)
    np.savez(folder / "ONE.npz", images=images, labels=np.full(6, 2))
    np.savez(folder / "WORDS.npz", images=images, labels=np.full(6, "cat"))
    for name, second in (("SIZES", (9, 8)), ("HOLLOW", None), ("TORN", (8, 8))):
        (folder / name / "cat").mkdir(parents=True)
        (folder / name / "dog").mkdir()
        PIL.Image.fromarray(images[0, ..., 0]).save(folder / name / "cat" / "0.png")
        if name == "SIZES":
            PIL.Image.fromarray(np.zeros(second, np.uint8)).save(folder / name / "cat" / "1.png")
        if second:
            PIL.Image.fromarray(images[1, ..., 0]).save(folder / name / "dog" / "0.png")
    (folder / "TORN" / "dog" / "0.png").write_bytes(b"torn")
    return {name: folder / name for name in ("ONE.npz", "WORDS.npz", "SIZES", "HOLLOW", "TORN")}


def arguments(command, names):
    """Returns the script and its arguments, the names in capitals replaced."""
    script, *given = command.split(" ")
    stand_in = re.compile(r"(?<![A-Za-z_.])(" + "|".join(map(re.escape, sorted(names, key=len, reverse=True))) + r")\b")
    return script.removesuffix(".py"), [stand_in.sub(lambda found: str(names[found[1]]), part) for part in given]
