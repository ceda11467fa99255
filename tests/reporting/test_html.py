"""The page of runs and evaluations: found, drawn, and looked at in a browser."""

import csv
import json
import re
import shutil
import xml.etree.ElementTree

import numpy as np
import pytest
from etils import epath

from robust_gan.config import AdversaryConfig, Config, to_dict
from robust_gan.errors import UserError
from robust_gan.reporting import comparison, details, evaluation_record, html, noise_images, plots, record
from robust_gan.reporting import tables as report_lib
from robust_gan.reporting.details import Details
from robust_gan.reproduction.run import SCHEMA

DRAWS = np.random.default_rng(0)
NAMES = tuple(f"<class {index}>" for index in range(4))


def write_run(folder, adversary="generator", best=0.8, film=True, seed=0, resumed=0, **changes):
    """A run as training leaves it: 200 steps, 4 validations."""
    folder.mkdir(parents=True)
    config = Config(adversary=AdversaryConfig(name=adversary), seed=seed, **changes)
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    starts = [{"step": step, "command": f"train <{seed}>", "commit": "abcdef"} for step in {0, resumed}]
    (folder / "starts.jsonl").write_text("".join(json.dumps(start) + "\n" for start in starts))
    lines, timing = [], []
    for step in range(10, 201, 10):
        loss = 2.3 * np.exp(-step / 60)
        lines.append({"step": step, "train/clean_loss": loss, "train/adversarial_loss": loss + 0.3})
        if adversary == "generator":
            lines[-1]["train/generator_loss"] = -loss - 0.2
        timing.append({"step": step, "seconds": 0.5})
        lines[-1]["train/classifier_gradient_norm"] = loss
        if step % 50 == 0:
            share = best * (1 - np.exp(-step / 80))
            lines.append({"step": step, "validation/clean_accuracy": 0.5 + share / 2, "validation/pgd10": share})
            lines[-1] |= {"health/logit_variation": 3.0, "warning/robust_overfitting": float(step == 200)}
            if film:
                images = np.linspace(0, 1, 4 * 8 * 8).reshape(4, 8, 8, 1)
                noise_images.write(epath.Path(folder), step, images, DRAWS.uniform(-1, 1, images.shape))
    for name, rows in (("metrics.jsonl", lines), ("timing.jsonl", timing)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_evaluation(folder, targets=("<standard>", "pgd"), with_details=True, fired=True):
    """An evaluation as comparison leaves it."""
    folder.mkdir(parents=True)
    labels = np.arange(40) % 4
    report = {
        "schema": evaluation_record.SCHEMA,
        "data": {"name": "digits", "split": "test", "count": 40},
        "threat": {"norm": "linf", "epsilon": 0.15, "bounds": [0, 1]},
        "attacks": ["fgsm", "pgd10"],
        "models": {name: {} for name in (*targets, "surrogate")},
        "targets": {}, "settings": {"seed": 0}, "created": "2026-11-27T00:00:00+00:00", "device": "cpu",
        "versions": {"robust_gan": "0", "jax": "0"},
        "paired": [{"first": targets[0], "second": targets[-1], "under": "fgsm", "difference": -0.25,
                    "interval": [-0.5, 0.01], "first_only": 2, "second_only": 12, "p_value": 0.013}],
        "curve": {"attack": "pgd10", "epsilons": [0, 0.1, 0.2], "robust_accuracy": {n: [1, 0.5, 0] for n in targets}},
    }  # fmt: skip
    stood, predicted, shown = {}, {}, {}
    images = DRAWS.uniform(0, 1, (4, 8, 8, 1))
    for index, name in enumerate(targets):
        report["targets"][name] = {
            "clean_accuracy": 0.9,
            "robust_accuracy": {
                "fgsm": {name: 0.5, "surrogate": 0.7},
                "pgd10": {name: 0.25 * index, "surrogate": None},
            },
            "worst_case": {"white_box": 0.25 * index, "black_box": 0.7, "all": 0.25 * index},
            "sequential": [{"attack": "clean", "robust_accuracy": 0.9}, {"attack": "apgd_ce", "robust_accuracy": 0.2}],
            "alarms": [{"name": "not_converged", "fired": fired and not index, "finding": "more steps & restarts"}],
        }
        stood[name] = (labels + np.arange(40) // 4) % 3 == 0
        predicted[name, "pgd10"] = np.where(stood[name], labels, (labels + 1) % 4)
        shown[name] = np.clip(images + DRAWS.uniform(-0.15, 0.15, images.shape), 0, 1)
    (folder / "report.json").write_text(json.dumps(report))
    if with_details:
        details.write(folder, Details(labels, NAMES, stood, predicted, images, np.arange(4), shown, "pgd10"))
    return folder


def write_reproduction(folder):
    for seed in (0, 1):
        for name, best in (("none", 0.1), ("pgd", 0.8)):
            write_run(
                folder / "runs" / f"seed-{seed}" / name, name, best + 0.05 * seed, film=False, seed=seed, num_steps=200
            )
    method = {
        "clean": [0.9, 0.95], "white_box": {"worst case": [0.5, 0.6]}, "black_box": {"worst case": [0.7, None]},
        "cost": [{"seconds": 100, "gradient_evaluations": 11}],
    }  # fmt: skip
    values = {
        "schema": SCHEMA,
        "dataset": "digits",
        "budget": "debug",
        "seeds": [0, 1],
        "attacks": "fgsm",
        "images": 360,
        "methods": {"none": method},
    }
    (folder / "reproduction.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("everything")
    write_run(root / "quick" / "<standard>", "none", best=0.1, film=False)
    write_run(root / "quick" / "pgd", "pgd")
    write_run(root / "quick" / "adversarial_network")
    write_evaluation(root / "quick" / "report")
    write_reproduction(root / "digits")
    return html.write([root / "quick", root / "digits"], root / "page.html")


def test_everything_is_found_and_drawn(written):
    text = written.read_text()
    assert "7 runs, 1 evaluation, 1 reproduction" in text
    for heading in (
        "Overview", "Reproduction digits", "Training", "Evaluation quick/report", "The generator's noise",
        "pgd under pgd10", "Confusion", "Examples under pgd10", "Robust accuracy of each class",
        "Loss of the generator",
        "Robust accuracy against training time", "Transfer of fgsm", "Robust accuracy against epsilon",
        "Robust accuracy after each sequential attack", "Paired comparisons", "McNemar", "-50.0 to +1.0",
        "90.0 (76.9 to 96.0), 36", "Accuracy in % of the validation images", "<small>(10.5 to 34.8), 8</small>",
        "<title>pgd, fgsm: 50.0 (35.2 to 64.8) %</title>",
    ):  # fmt: skip
        assert heading in text
    assert "1 of 2 alarms fired" in text
    assert "more steps &amp; restarts" in text
    assert "<standard>" not in text
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        xml.etree.ElementTree.fromstring(drawing)


def test_one_name_has_one_colour_in_runs_and_evaluations(written):
    text = html.render(record.find([written.parent / "quick"]))
    colours = set(re.findall(r'<li style="--c:var\(--(c\d)\)">pgd</li>', text))
    for tip in ("pgd, clean: 90.0 (76.9 to 96.0) %", "pgd: 50.0 % at 0.1", "pgd: 86.7 % at 200"):
        after = text.split(f"<title>{tip}</title>")[1]
        colours.add(re.search(r"var\(--(c\d)\)", after)[1])
    assert len(colours) == 1


def test_seeds_of_one_config_are_one_line_with_a_band_and_a_row(written):
    found = record.find([written.parent / "digits"])
    assert {(run.name, run.group) for run in found.runs} == {
        ("seed-0/none", "none"), ("seed-1/none", "none"), ("seed-0/pgd", "pgd"), ("seed-1/pgd", "pgd"),
    }  # fmt: skip
    assert html.render(found).count('id="band"') >= 2
    rows = {row[0]: row for row in comparison.run_table(found.runs, "validation/pgd10").rows}
    first, second = (0.8 * (1 - np.exp(-2.5)), 0.85 * (1 - np.exp(-2.5)))
    assert rows["mean of pgd"][2] == "0, 1"
    assert rows["mean of pgd"][6] == f"{50 * (first + second):.1f} ± {100 * (second - first) / np.sqrt(2):.1f}"


def test_runs_are_compared_by_the_fields_that_differ(tmp_path):
    write_run(tmp_path / "a", "pgd", film=False, batch_size=32, resumed=100)
    write_run(tmp_path / "b", "none", film=False)
    found = record.find([tmp_path])
    assert comparison.config_table(found.runs).rows == [["batch_size", "32", "64"]]
    (first, second) = comparison.run_table(found.runs, "validation/pgd10").rows
    assert (first[0], first[1], first[-2:]) == ("⚠ a", "pgd", ["abcdef", "train <0>"])
    assert second[1] == "none"
    text = html.render(found)
    for drawn in ("Learning rate of the classifier", "Gradient norm of the classifier", "Health: logit variation",
                  "Warning: robust overfitting", "a resumed", "<title>a: 1 at 200</title>"):  # fmt: skip
        assert drawn in text
    assert "<summary>a</summary>" in text
    assert "&#34;batch_size&#34;: 32" in text


def change(folder, **changes):
    values = json.loads((folder / "report.json").read_text())
    for name, value in changes.items():
        values[name] = values[name] | value if isinstance(value, dict) else value
    (folder / "report.json").write_text(json.dumps(values))


def test_evaluations_share_a_table_only_with_the_same_images_radius_and_norm(tmp_path):
    for name in ("a", "b", "c", "d", "e"):
        write_evaluation(tmp_path / name, ("pgd",), fired=name == "b")
    change(tmp_path / "b", attacks=["fgsm"])
    change(tmp_path / "c", threat={"epsilon": 0.1})
    change(tmp_path / "d", threat={"norm": "l2"})
    change(tmp_path / "e", data={"count": 20})
    made = comparison.accuracy_tables(record.find([tmp_path]).evaluations, [])
    assert [[row[1].rpartition("/")[2] for row in table.rows] for table in made] == [["a", "b"], ["c"], ["d"], ["e"]]
    assert made[0].header[4:] == [
        "clean", "fgsm, white box", "pgd10, white box", "apgd_ce", "worst case A, white box", "worst case A, black box",
        "worst case A, white and black box", "worst case B, white box", "worst case B, black box",
        "worst case B, white and black box",
    ]  # fmt: skip
    assert [row[0] for row in made[0].rows] == ["pgd", "⚠ pgd"]
    assert made[0].rows[0][5] == "50.0 (35.2 to 64.8), 20"
    assert made[0].rows[0][-3:] == ["-", "-", "-"]


def test_models_that_were_evaluated_alone_under_the_same_attacks_share_their_columns(tmp_path):
    for name in ("a", "b"):
        path = write_evaluation(tmp_path / name, (name,), fired=False) / "report.json"
        values = json.loads(path.read_text())
        del values["models"]["surrogate"]
        values["targets"][name]["worst_case"] |= {"black_box": None}
        path.write_text(json.dumps(values))
    [made] = comparison.accuracy_tables(record.find([tmp_path]).evaluations, [])
    assert made.header[4:] == ["clean", "fgsm, white box", "pgd10, white box", "apgd_ce", "worst case, white box"]
    assert not any("-" in row[4:] for row in made.rows)
    assert made.note.endswith("image by image: fgsm, pgd10; sequential apgd_ce.")


def test_models_of_two_evaluations_of_the_same_images_are_compared_in_pairs(tmp_path):
    for name in ("a", "b"):
        change(write_evaluation(tmp_path / name, (name,), fired=False), models={name: {"checkpoint": name}})
    found = details.read(tmp_path / "b")
    right = found.predicted["b", "pgd10"].copy()
    right[:3] = (found.labels[:3] + 1) % 4
    details.write(tmp_path / "b", found._replace(predicted={("b", "pgd10"): right}))
    [row] = comparison.paired_table(record.find([tmp_path]).evaluations).rows
    alone = int((details.read(tmp_path / "a").predicted["a", "pgd10"] == found.labels)[:3].sum())
    assert row[0].startswith("a of")
    assert (row[1], row[4:6]) == ("pgd10", [str(alone), "0"])
    change(tmp_path / "b", threat={"epsilon": 0.1})
    assert comparison.paired_table(record.find([tmp_path]).evaluations).rows == []


def test_seeds_of_evaluated_models_have_a_mean(tmp_path):
    for seed in (0, 1):
        run = write_run(tmp_path / "runs" / f"pgd_{seed}", "pgd", film=False, seed=seed)
        about = {"pgd": {"checkpoint": f"{run}/checkpoints", "trained_with": "pgd", "seed": seed}}
        folder = write_evaluation(tmp_path / f"report_{seed}", ("pgd",), fired=False)
        change(folder, models=about)
    found = record.find([tmp_path])
    [table] = comparison.accuracy_tables(found.evaluations, found.runs)
    assert table.rows[-1][:5] == ["mean of pgd_0 to pgd_1", "-", "pgd", "0, 1", "90.0 ± 0.0"]


def test_sequential_attacks_have_classes_and_confusions_too(tmp_path):
    folder = write_evaluation(tmp_path / "a", ("pgd",))
    found = details.read(folder)
    broken = np.where(found.labels == 0, 1, found.labels)
    details.write(folder, found._replace(predicted={**found.predicted, ("pgd", details.SEQUENTIAL): broken}))
    content = html._evaluation(record.find([folder]).evaluations[0], {"pgd": 0})
    assert content["classes"][1].rows[0][1:3] == ["0.0 (0.0 to 27.8), 0", "100.0 (72.2 to 100.0), 10"]
    assert [table.title for table in content["confusions"]] == ["⚠ pgd under pgd10", "⚠ pgd under sequential attacks"]
    assert content["confusions"][1].rows[0] == ["<class 0>", "", "10", "", ""]


def test_every_table_is_written_as_csv(launch, tmp_path):
    write_evaluation(tmp_path / "a", ("pgd",))
    flags = [tmp_path / "a", f"--output={tmp_path}/page.html"]
    (tmp_path / "file").write_text("")
    ended = launch("report", *flags, f"--csv={tmp_path}/file")
    assert (ended.code, ended.err) == (
        2, f"error: {tmp_path}/file cannot be written (file exists): give another --csv\n"
    )  # fmt: skip
    assert not (tmp_path / "page.html").exists()
    assert launch("report", *flags, f"--csv={tmp_path}/tables").code == 0
    files = sorted((tmp_path / "tables").iterdir())
    assert len(files) == (tmp_path / "page.html").read_text().count("<table")
    header, row = csv.reader(files[0].read_text().splitlines())
    assert dict(zip(header, row, strict=True)) | {"clean: low": "76.9", "clean: images": "36"} == dict(
        zip(header, row, strict=True)
    )


def test_an_evaluation_of_an_older_version_and_a_run_under_way_are_shown(tmp_path):
    write_evaluation(tmp_path / "old", with_details=False, fired=False)
    run = write_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text()[:-20])
    write_run(tmp_path / "begun")
    (tmp_path / "begun" / "metrics.jsonl").write_text("")
    text = html.render(record.find([tmp_path]))
    assert "This evaluation has no details.npz" in text
    assert "None of 2 alarms fired" in text


def test_many_classes_show_the_worst_and_the_most_confused(tmp_path):
    folder = write_evaluation(tmp_path / "many")
    found = details.read(folder)
    names = tuple(f"class {index}" for index in range(30))
    details.write(folder, found._replace(label_names=names))
    text = html.render(record.find([folder]))
    assert "The 20 least robust of 30 classes" in text
    assert "The most frequent of many classes" in text


def test_folders_that_hold_nothing_are_told(launch, tmp_path):
    for directory, sentence in ((tmp_path / "no", "there is no folder"), (tmp_path, "holds no run, evaluation or")):
        ended = launch("report", directory, f"--output={tmp_path}/page.html")
        assert (ended.code, ended.out) == (2, "")
        assert sentence in ended.err
    ended = launch("report")
    assert (ended.code, ended.out) == (2, "")
    assert "no folder is given" in ended.err
    run = write_run(tmp_path / "run")
    (run / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json is damaged"):
        record.find([run])
    assert not (tmp_path / "page.html").exists()
    folder = write_evaluation(tmp_path / "evaluation")
    (folder / "report.json").write_text('{"schema": "robust_gan.evaluation/2"}')
    with pytest.raises(UserError, match=r"report.json is of the schema 'robust_gan.evaluation/2', not "):
        record.find([folder])


def test_the_launcher_writes_where_it_is_told(launch, tmp_path):
    write_run(tmp_path / "run")
    ended = launch("report", tmp_path / "run", f"--output={tmp_path}/new/page.html")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.strip() == str(tmp_path / "new" / "page.html")
    (tmp_path / "file").write_text("")
    ended = launch("report", tmp_path / "run", f"--output={tmp_path}/file/page.html")
    assert (ended.code, ended.out) == (2, "")


def test_figures_take_anything_finite_or_not():
    for xs, ys in (([], []), ([0], [0.5]), ([0, 1], [np.nan, 0.5]), ([1, 1], [2, np.inf]), ([-2, 1e6], [-5, -5])):
        figure = plots.lines([plots.Series("$a_{<b>", 12, xs, ys)], x="x", y="y", marks={0.5: "here"}, legend=True)
        xml.etree.ElementTree.fromstring(plots.to_svg(figure, "a"))
    assert "nan" not in report_lib.shaded("", "", ["a"], ["b"], [[float("nan")]], 10).rows[0]


def test_shares_are_formatted():
    assert report_lib.format_shares([0.8125], 160) == "81.2 (74.5 to 86.5)"
    assert report_lib.format_shares([0.7, 0.8, 0.9], 160) == "80.0 ± 10.0"


def test_without_matplotlib_the_page_has_its_tables(written, monkeypatch):
    monkeypatch.setattr(plots, "can_plot", lambda: False)
    text = html.render(record.find([written.parent / "quick"]))
    assert "<svg" not in text
    assert "pip install &#39;robust_gan[plot]&#39;" in text or "pip install 'robust_gan[plot]'" in text
    assert "Robust accuracy of each class" in text
    assert "Examples under" not in text


@pytest.mark.browser
def test_in_a_browser_all_is_drawn_and_the_console_is_empty(written):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    with sync_api.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"], timeout=120_000)
        except sync_api.Error as error:
            pytest.skip(f"needs a Chromium: {str(error).splitlines()[0]}")
        for scheme, width in (("light", 1280), ("dark", 400)):
            context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800}, offline=True)
            context.set_default_timeout(120_000)
            tab, told = context.new_page(), []
            tab.on("console", lambda message, told=told: told.append(message.text))
            tab.on("pageerror", lambda error, told=told: told.append(str(error)))
            tab.on("request", lambda request, told=told: told.append(request.url))
            tab.goto(written.as_uri())
            assert [text for text in told if not text.startswith(("data:", written.as_uri()))] == []
            assert tab.evaluate("[...document.querySelectorAll('svg image')].every(i => i.getBBox().width > 5)")
            ink = tab.evaluate("getComputedStyle(document.querySelector('svg.chart text')).fill")
            assert ink == ("rgb(89, 99, 110)" if scheme == "light" else "rgb(154, 165, 177)")
            boxes = tab.evaluate("[...document.querySelectorAll('svg.chart')].map(chart => chart.getBBox().width)")
            assert len(boxes) >= 8
            assert min(boxes) > 200
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            pixels = tab.locator("svg.chart").first.screenshot()
            assert len(set(pixels)) > 100
            context.close()
        browser.close()
