"""Writers of metrics that people bring: they get the lines of metrics.jsonl, and are closed whatever happens."""

import json
import sys
import types

import pytest
import tiny_config

from robust_gan import parallel, training
from robust_gan.config import ValidationConfig
from robust_gan.errors import UserError

CONFIG = tiny_config.make("none", num_steps=2, log_every=1, validation=ValidationConfig(every=2, pgd_steps=1))


class Kept:
    def __init__(self, fails=False):
        self.lines, self.closed, self.fails = [], 0, fails

    def write(self, step, values):
        if self.fails:
            raise ConnectionError("no network")
        self.lines.append({"step": step, **values})

    def close(self):
        self.closed += 1


def train(directory, writer):
    devices = parallel.find_devices(num_devices=1)
    training.train(CONFIG, directory, devices=devices, progress=False, log_fn=lambda _: None, metric_writers=[writer])


@pytest.mark.usefixtures("tiny_names")
def test_a_writer_gets_what_the_file_gets_and_is_closed(tmp_path):
    writer, failing = Kept(), Kept(fails=True)
    train(tmp_path / "run", writer)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert writer.lines == lines
    assert writer.closed == 1
    with pytest.raises(ConnectionError):
        train(tmp_path / "other", failing)
    assert failing.closed == 1


def test_writers_are_made_by_functions_of_their_names(monkeypatch, tmp_path):
    module = types.ModuleType("my_writers")
    module.make = lambda config, workdir: (config["num_steps"], workdir) == (2, str(tmp_path)) and Kept()
    module.number = lambda: 3
    monkeypatch.setitem(sys.modules, "my_writers", module)
    (writer,) = training.load_writers(["my_writers:make"], CONFIG, tmp_path)
    assert isinstance(writer, Kept)
    with pytest.raises(UserError, match=r"must return an object with the methods write\(step, values\) and close\(\)"):
        training.load_writers(["my_writers:number"], CONFIG, tmp_path)
    monkeypatch.setattr(parallel, "is_primary", lambda: False)
    assert training.load_writers(["my_writers:make"], CONFIG, tmp_path) == []
