"""reproduce.py: the plan, the costs, the tables; resumed after a kill, it gives the same."""

import functools
import importlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from robust_gan import reproduction
from robust_gan.config import AdversaryConfig, Config, GeneratorConfig, datasets, methods, to_dict, validate
from robust_gan.errors import UserError
from robust_gan.reproduction import cost, tables
from robust_gan.reproduction.plan import NETWORK

ROOT = pathlib.Path(__file__).resolve().parents[2]


def built_in(dataset="digits"):
    return functools.partial(datasets.get_config, dataset)


def test_methods_are_matched_where_their_authors_do_not_differ():
    plan = reproduction.plan(built_in(), "digits", "short", "out")
    alike = {
        (c.num_steps, c.batch_size, str(c.classifier.optimizer), c.classifier.network, str(c.data), str(c.threat))
        for (_, name), c in plan.runs.items()
        if name != NETWORK
    }
    assert len(alike) == 1
    assert set(plan.methods) == set(reproduction.PAPER_METHODS)


def test_surrogates_differ_in_seed_or_network_and_the_source_comes_before_the_ensembles():
    plan = reproduction.plan(built_in(), "digits", "short", "out", methods=["ensemble", "none"], seeds=[3])
    names = [name for _, name in plan.runs]
    assert names == ["source", "ensemble", "none", "surrogate", "surrogate_network"]
    assert [config.seed for config in plan.runs.values()] == [303, 3, 3, 103, 203]
    assert plan.runs[3, "surrogate_network"].classifier.network != plan.runs[3, "none"].classifier.network
    assert plan.runs[3, "ensemble"].adversary.ensemble.sources == ("out/runs/seed-3/source",)
    assert "source" not in [
        name for _, name in reproduction.plan(built_in(), "digits", "short", "o", methods=["pgd"]).runs
    ]


@pytest.mark.parametrize("dataset", ["digits", "mnist", "svhn", "cifar10", "cifar10_wide", "cifar100"])
def test_every_method_of_every_config_is_a_valid_configuration(dataset):
    budgets = ("paper", "debug") if dataset == "svhn" else methods.BUDGETS
    for budget in budgets:
        plan = reproduction.plan(built_in(dataset), dataset, budget, "out", methods=list(methods.METHODS))
        assert len({json.dumps(to_dict(config)) for config in plan.runs.values()}) == len(plan.runs)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"methods": ["gan"]}, "unknown method 'gan': the methods are none, fgsm"),
        ({"methods": ["pgd", "pgd"]}, "a method is named twice"),
        ({"seeds": []}, "seeds must be whole numbers from 0 to 99"),
        ({"seeds": [100]}, "seeds must be whole numbers from 0 to 99"),
        ({"seeds": [1, 1]}, "a seed is named twice: 1, 1"),
        ({"budget": "tpu"}, "the budget must be one of paper, short, debug, not 'tpu'"),
    ],
)
def test_a_plan_that_cannot_be_is_one_sentence(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        reproduction.plan(built_in(), "digits", settings.pop("budget", "short"), "out", **settings)


def test_a_budget_that_a_config_does_not_have_is_told(launch, tmp_path):
    ended = launch("reproduce", "--dataset=svhn", "--budget=short", f"--output={tmp_path}/out")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: this config has no budget 'short': it has paper, debug\n"
    for flag, sentence in (
        ("--dataset=cifar", "there is no built-in config 'cifar': the built-in ones are cifar10"),
        ("--seeds=a", "--seeds must be whole numbers separated by commas, not 'a'"),
        ("--attacks=fgsm,ppd", "unknown attack 'ppd'"),
        ("--attacks=clean,generator", "give an attack that can be made on every method"),
    ):
        flags = ["--dataset=digits", "--budget=debug", f"--output={tmp_path}/out", flag]
        ended = launch("reproduce", *flags)
        assert ended.code == 2
        assert sentence in ended.err
    assert not (tmp_path / "out").exists()


def test_data_that_are_not_prepared_are_told_before_anything_is_written(launch, tmp_path):
    flags = ["--dataset=mnist", "--budget=debug", f"--output={tmp_path}/out", f"--data_dir={tmp_path}/data"]
    ended = launch("reproduce", *flags)
    assert ended.code == 2
    assert "robust-gan-prepare-data --dataset=mnist" in ended.err
    assert not (tmp_path / "out").exists()


def test_gradients_are_counted_by_hand():
    def count(name, **generator):
        config = methods.apply_method(Config(adversary=AdversaryConfig(generator=GeneratorConfig(**generator))), name)
        config.adversary.ensemble.sources = ("a",)
        validate(config)
        return cost.gradient_evaluations(config)

    assert count("none") == 1
    assert count("fgsm") == 2  # One step, and the update on adversarial images alone.
    assert count("pgd") == 11
    assert count("trades") == 12
    assert count("ensemble") == 2 + 1 + 10
    assert count("ensemble_tramer") == 3
    assert count("generator", steps=5, batches_per_step=5) == 2 + 25
    assert count("cond_generator") == 2 + (1 + 1) + 1  # A look and a gradient to improve, a look to perturb.
    assert count("cond_generator_refined") == 2 + (3 + 1) + 3
    assert count("cond_generator_adv_only") == 1 + (3 + 1) + 3
    config = Config()
    config.penalty.coefficient, config.classifier.awp_gamma = 0.1, 0.01
    assert cost.gradient_evaluations(config) == 2 * (2 + 2) + 5


def test_losses_are_those_at_the_end(tmp_path):
    lines = [{"step": n, "train/classifier_loss": 1.0, "train/clean_loss": float(n)} for n in range(1, 11)]
    lines.insert(5, {"step": 5, "validation/fgsm": 0.1})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cost.losses(tmp_path) == {"clean_loss": 9.5}


def test_only_the_released_game_is_called_released():
    def labels(dataset, budget):
        plan = reproduction.plan(built_in(dataset), dataset, budget, "out")
        return [tables.label(plan, name) for name in ("released", "generator")]

    exact, difference = "image-only generator (+ exact penalty)", "image-only generator (- finite difference penalty)"
    assert labels("cifar10", "paper") == labels("mnist", "paper") == ["released", exact]
    assert labels("digits", "short") == labels("mnist", "short") == labels("cifar100", "paper") == [difference, exact]


def test_the_tables_hold_the_results_of_the_reports():
    plan = reproduction.plan(built_in(), "cifar10", "paper", "out", methods=["pgd", "generator"], seeds=[0, 1])
    sources = ["pgd", "generator", "surrogate", "surrogate_network"]

    def report_of(base):
        values = dict(zip(sources, (base, base + 0.1, base + 0.2, base + 0.3), strict=True))
        target = {
            "clean_accuracy": 0.9,
            "robust_accuracy": {"fgsm": values, "pgd10": values, "generator": {"generator": base}},
            "worst_case": {"white_box": base, "black_box": base + 0.05, "all": base - 0.05},
        }
        return {
            "targets": {"pgd": target, "generator": target}, "attacks": ["fgsm", "pgd10", "generator"],
            "models": dict.fromkeys(sources), "data": {"name": "cifar10", "split": "test", "count": 10},
            "threat": {"norm": "linf", "epsilon": 0.1}, "created": "2026-01-01T00:00:00", "device": "cpu",
            "versions": {"jax": "0"},
        }  # fmt: skip

    costs = {
        "seconds": 60.0,
        "updates": 5,
        "gradient_evaluations": 7,
        "parameters": {"classifier": 1000},
        "losses": {"clean_loss": 0.5},
    }
    reports = {0: report_of(0.4), 1: report_of(0.6)}
    table = tables.summarise(plan, reports, {seed: {"pgd": costs, "generator": costs} for seed in (0, 1)})
    assert [row["label"] for row in table.values()] == ["pgd", "image-only generator (+ exact penalty)"]
    assert list(tables.columns(plan, table)) == [row["label"] for row in table.values()]
    text = tables.write_up(plan, table, reports)
    assert "The method `generator` is the image-only generator (+ exact penalty)." in text
    white, black = (re.search(rf"## {title}.*?\n\| pgd +\|(.*?)\n", text, re.S)[1] for title in ("White", "Black"))
    assert [cell.strip() for cell in white.split("|")[:-1]] == [
        "90.0 ± 0.0", "50.0 ± 14.1", "50.0 ± 14.1", "-", "50.0 ± 14.1", "45.0 ± 14.1",
    ]  # fmt: skip
    assert [cell.strip() for cell in black.split("|")[:-1]] == [
        "-", "60.0 ± 14.1", "70.0 ± 14.1", "80.0 ± 14.1", "55.0 ± 14.1",
    ]  # fmt: skip
    assert re.search(r"\| generator +\| 91.32 \|", text)  # As others cite it.
    assert re.search(r"\| image-only generator \(\+ exact penalty\) \| +90.0 ± 0.0 \|", text)
    # Equal in each seed: no deviation, no test.
    assert text.count("+0.0 (-), p - |") == 3
    assert re.search(r"Losses at the end.*\n\| pgd +\|\s+0.5 ± 0 \| +- \|", text, re.S)


@pytest.mark.slow
def test_a_killed_experiment_goes_on_to_the_same_tables(launch, tmp_path):
    """The whole of it: trained, killed, gone on, attacked, written; and once more with nothing left to do."""
    flags = ["--dataset=digits", "--budget=debug", "--methods=ensemble"]

    def command(output):
        return [sys.executable, ROOT / "launch" / "reproduce.py", *flags, f"--output={output}"]

    killed = subprocess.Popen(command(tmp_path / "a"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (tmp_path / "a/runs/seed-0/source/checkpoints/4").exists() and time.monotonic() < until:
        time.sleep(0.2)
    time.sleep(1.0)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "a/reproduction.md").exists()
    ended = launch("reproduce", *flags, f"--output={tmp_path}/a")
    assert ended.code == 0, ended.err
    whole = launch("reproduce", *flags, f"--output={tmp_path}/b")
    assert whole.code == 0, whole.err

    def figures(output):
        values = json.loads((output / "reproduction.json").read_text())
        for row in values["methods"].values():
            del row["cost"]
        return values

    assert figures(tmp_path / "a") == figures(tmp_path / "b")
    assert "## White-box accuracy" in whole.out
    assert (tmp_path / "b/reproduction.md").read_text().strip() in whole.out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a/seed-0").iterdir()}
    again = launch("reproduce", *flags, f"--output={tmp_path}/a")
    assert again.out.split("# digits")[1] == ended.out.split("# digits")[1]
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "a/seed-0").iterdir()}
    rows = json.loads((tmp_path / "a/reproduction.json").read_text())["methods"]
    for row in rows.values():
        assert all(0 <= share <= 1 for share in np.ravel([row["clean"], row["all"]]))
        assert row["all"][0] <= row["white_box"]["worst case"][0] <= row["clean"][0]
        assert row["all"][0] <= row["black_box"]["worst case"][0]


@pytest.mark.slow
def test_methods_are_reproduced_on_ones_own_file(launch, tmp_path, monkeypatch):
    from robust_gan import data

    searched, find_overlap = [], data.find_overlap
    monkeypatch.setattr(data, "find_overlap", lambda dataset: searched.append(dataset.name) or find_overlap(dataset))
    labels = np.arange(60) % 3
    images = np.random.default_rng(0).integers(0, 256, (60, 12, 12, 1), np.uint8)
    files = {"images": images[:50], "labels": labels[:50], "test_images": images[40:], "test_labels": labels[40:]}
    np.savez(tmp_path / "mine.npz", **files)
    flags = [f"--data={tmp_path}/mine.npz", "--methods=none", "--budget=debug", "--attacks=fgsm", "--num_devices=1"]
    ended = launch("reproduce", *flags, f"--output={tmp_path}/out")
    assert ended.code == 0, ended.err
    assert re.search(r"^warning: \d+ of the 20 test images of mine.npz are among the training images$", ended.out, re.M)
    assert searched == ["mine.npz"]  # Not once more in each run.
    values = json.loads((tmp_path / "out" / "reproduction.json").read_text())
    assert (values["dataset"], values["images"], list(values["methods"])) == ("mine.npz", 20, ["none"])
    np.savez(tmp_path / "mine.npz", **files | {"images": 255 - images[:50]})
    ended = launch("reproduce", *flags, f"--output={tmp_path}/out")
    assert ended.code == 2
    assert "holds an experiment on other images or labels of mine.npz: give another folder" in ended.err


def test_an_experiment_does_not_go_on_with_other_images_or_labels_of_the_same_shape(tmp_path):
    from etils import epath

    from robust_gan import data

    run = importlib.import_module("robust_gan.reproduction.run")  # The package has a function of this name.
    dataset = data.load("digits", data_dir=tmp_path, validation_size=137)
    folder = epath.Path(tmp_path) / "out"
    for _ in range(2):
        run._check_data(folder, dataset)
    for split in ("train", "validation", "test"):
        part = getattr(dataset, split)
        other = dataset._replace(**{split: part._replace(labels=part.labels[::-1])})
        with pytest.raises(UserError, match=r"out holds an experiment on other images or labels of digits: give anoth"):
            run._check_data(folder, other)
