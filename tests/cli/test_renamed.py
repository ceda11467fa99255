"""Names of earlier versions are refused, each with its new name in the sentence; nothing is written."""

import json

import numpy as np
import pytest

from robust_gan import checkpoint
from robust_gan.checkpoint import metadata
from robust_gan.config import Config, flatten, from_dict, methods, renamed, to_dict
from robust_gan.errors import UserError

FIELDS = flatten(to_dict(Config()))
COMMANDS = {"contestants": "reproduce"}
CASES = [
    *(("train", ["--config=digits", f"--config.{old}=1"], new) for old, new in renamed.FIELDS.items()),
    *(
        ("train", ["--config=digits", f"--config.{field}={old}"], new)
        for field, values in renamed.VALUES.items()
        for old, new in values.items()
    ),
    *(("train", [f"--config=digits:{old}"], new) for old, new in renamed.METHODS.items()),
    *(("train", [f"--config=digits:pgd/{old}"], new) for old, new in renamed.BUDGETS.items()),
    *(("reproduce", ["--dataset=digits", f"--budget={old}"], new) for old, new in renamed.BUDGETS.items()),
    *(("reproduce", ["--dataset=digits", f"--methods={old}"], new) for old, new in renamed.METHODS.items()),
    *((COMMANDS.get(old, "evaluate"), [f"--{old}=1"], f"--{new}") for old, new in renamed.FLAGS.items()),
    *(("evaluate", ["--checkpoint={run}", f"--attacks={old}"], new) for old, new in renamed.ATTACKS.items()),
]


@pytest.mark.parametrize(("command", "arguments", "name"), CASES, ids=[" ".join(case[1]) for case in CASES])
def test_an_old_name_is_refused_with_the_new_one(launch, tmp_path, tiny_run, command, arguments, name):
    folder = "workdir" if command == "train" else "output"
    ended = launch(command, *(text.format(run=tiny_run) for text in arguments), f"--{folder}={tmp_path}/new")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert f"is now called {name}\n" in ended.err.replace("'", "").replace(")", "")
    assert not list(tmp_path.iterdir())


def test_new_names_are_there_and_old_ones_are_not():
    assert set(renamed.FIELDS.values()) <= set(FIELDS)
    assert not set(renamed.FIELDS) & set(FIELDS)
    assert set(renamed.METHODS.values()) <= set(methods.METHODS)
    assert set(renamed.BUDGETS.values()) <= set(methods.BUDGETS)


def with_old_field(values, old):
    """Returns the configuration as a version wrote it that had the old name of a field."""
    *groups, name = old.split(".")
    for group in groups:
        values = values[group]
    values[name] = values.pop(renamed.FIELDS[old].rpartition(".")[2])


@pytest.mark.parametrize("old", renamed.FIELDS)
def test_a_configuration_with_an_old_name_says_so(old):
    values = to_dict(Config())
    with_old_field(values, old)
    with pytest.raises(UserError, match=rf"earlier version .* {old} is now called {renamed.FIELDS[old]}\): use that"):
        from_dict(values)


def test_the_workdir_of_an_earlier_version_is_refused(launch, tmp_path):
    values = to_dict(Config())
    with_old_field(values, "keep_last")
    (tmp_path / "config.json").write_text(json.dumps(values))
    before = list(tmp_path.iterdir())
    ended = launch("train", "--config=digits", f"--workdir={tmp_path}")
    assert (ended.code, ended.out) == (2, "")
    assert "keep_last is now called max_to_keep): use that version, or train again in another workdir" in ended.err
    assert list(tmp_path.iterdir()) == before


def test_the_checkpoint_of_an_earlier_version_is_refused(launch, tmp_path):
    info = checkpoint.DataInfo("digits", (8, 8, 1), 10, tuple("0123456789"))
    writer = checkpoint.Writer(tmp_path / "run", Config(), info)
    writer.save(1, {"x": np.zeros(2, np.float32)}, {checkpoint.SELECTION: 0.5})
    writer.close()
    path = tmp_path / "run" / checkpoint.FOLDER / "1" / "config" / "metadata"
    saved = json.loads(path.read_text())
    with_old_field(saved["config"], "adversary.generator.hops")
    path.write_text(json.dumps(metadata.signed(saved)))
    ended = launch("evaluate", f"--checkpoint={tmp_path}/run", f"--output={tmp_path}/report")
    assert (ended.code, ended.out) == (2, "")
    assert "hops is now called adversary.generator.num_refinements): use that version, or train again" in ended.err
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(("file", "schema"), [("report.json", "evaluation/4"), ("reproduction.json", "reproduction/2")])
def test_the_report_of_an_earlier_version_is_refused(launch, tmp_path, file, schema):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / file).write_text(json.dumps({"schema": f"robust_gan.{schema}"}))
    ended = launch("report", tmp_path / "old", f"--output={tmp_path}/page.html")
    assert (ended.code, ended.out) == (2, "")
    assert f"is of the schema 'robust_gan.{schema}', not robust_gan." in ended.err
    assert "make it again, or leave its folder out" in ended.err
    assert not (tmp_path / "page.html").exists()
