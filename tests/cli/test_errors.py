"""Walks the tables of docs/errors.md: what is typed there says what is said there, ends as it says, writes nothing."""

import pathlib
import re
import subprocess
import sys

import mistakes
import pytest

pytestmark = pytest.mark.docs

ROWS = mistakes.rows()


@pytest.fixture(scope="module")
def names(tmp_path_factory, tiny_run):
    return mistakes.make(tmp_path_factory.mktemp("mistakes"), tiny_run)


def tree(folder):
    """What lies below a folder; how large files are, and when they were written, will do."""
    paths = [path for path in pathlib.Path(folder).rglob("*") if "__pycache__" not in path.parts]
    return {path: path.is_file() and (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


@pytest.mark.parametrize("row", ROWS, ids=[row.command for row in ROWS])
def test_a_mistake_says_what_the_page_says(launch, capfd, names, row):
    script, arguments = mistakes.arguments(row.command, names)
    folder = names["NEW"].parent
    before = tree(folder), tree(names["RUN"])
    ended = launch(script, *arguments)
    assert (tree(folder), tree(names["RUN"])) == before
    assert (ended.code, ended.out) == (row.code, "")
    # Libraries may not speak either.
    assert capfd.readouterr() == ("", "")
    said = ended.err
    for name in sorted(names, key=lambda name: -len(str(names[name]))):
        said = said.replace(str(names[name]), name)
    assert re.fullmatch(rf"error: {mistakes.pattern(row.sentence)}\n", said), said


def test_the_page_has_every_launcher_and_a_mistake_of_every_kind():
    assert len(ROWS) > 100
    assert {row.command.split()[0] for row in ROWS} == {
        "train.py",
        "evaluate.py",
        "prepare_data.py",
        "report.py",
        "export.py",
    }
    assert {row.code for row in ROWS} == {2}
    assert len(set(ROWS)) == len(ROWS)


def test_what_a_callback_raised_is_printed_once():
    program = """
import jax, sys
from robust_gan.cli.errors import guard
from robust_gan.errors import UserError
def main(argv):
    def there(x):
        raise RuntimeError("the camera is off")
    try:
        found = jax.jit(lambda x: jax.pure_callback(there, jax.ShapeDtypeStruct((), "float32"), x))(1.0)
        jax.block_until_ready(found)
    except Exception as error:
        raise UserError("it failed") from error
sys.exit(guard(main, []))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert ended.stderr.endswith("error: it failed\n")
    assert "Exception ignored" not in ended.stderr
