"""Progress where there is no terminal: lines on stdout, at most one every half minute."""

import re

import pytest
import tiny_config

from robust_gan import parallel, training
from robust_gan.reporting import progress


def test_lines_are_at_most_as_frequent_as_said(capsys, monkeypatch):
    with progress.Progress(10, unit="image") as shown:
        shown.update(3)
        shown.describe("waits")
        assert capsys.readouterr() == ("", "")
        shown.describe("is asked for", at_once=True)
        assert re.fullmatch(r"image 3 of 10, is asked for, .* images/s, \d+ s left\n", capsys.readouterr().out)
        monkeypatch.setattr(progress, "SECONDS", 0.0)
        shown.update(7)
        assert re.fullmatch(r"image 10 of 10, [^,]* images/s\n", capsys.readouterr().out)


@pytest.mark.parametrize(("show", "is_primary"), [(False, True), (None, False)])
def test_nothing_is_printed_where_nothing_is_wanted_or_in_another_process(capsys, monkeypatch, show, is_primary):
    monkeypatch.setattr(parallel, "is_primary", lambda: is_primary)
    with progress.Progress(10, unit="image", show=show) as shown:
        shown.describe("told", at_once=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("tiny_names")
def test_a_run_without_a_terminal_prints_losses_between_its_lines_of_metrics(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    config = tiny_config.make("none", num_steps=3, log_every=100)
    training.train(config, tmp_path, devices=parallel.find_devices(num_devices=1), log_fn=lambda text: None)
    first, *_, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"step 1 of 3, clean_loss \d\.\d{3}, .* steps/s, \d+ s left", first)
    assert re.fullmatch(r"step 3 of 3, clean_accuracy \d\.\d{3}, pgd1 \d\.\d{3}, .* steps/s", last)
