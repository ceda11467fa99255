"""Every command of the README and the pages runs: cut down, in the order of its page, beside the files that it shows.

Lines that end in `# accelerator`, `# downloads` or `# hours ...` are read, not run.
"""

import contextlib
import io
import pathlib
import re
import runpy
import shlex
import subprocess

import pytest
import tiny_networks as tiny

from robust_gan import data, evaluation, networks, reproduction

pytestmark = pytest.mark.docs

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^( *)```(sh|python)(?: title=\"([\w.]+)\")?\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)

SHORT = {
    "train": [
        "--config.num_steps=1", "--config.validation.every=1", "--config.validation.size=8", "--config.batch_size=16",
        "--config.validation.pgd_steps=1", "--config.adversary.pgd.num_steps=1", "--config.adversary.generator.steps=1",
    ],
    "evaluate": ["--num_examples=8", "--attacks=fgsm,generator", "--sequential=", "--plots="],
}  # fmt: skip
IN_SCRIPTS = [("num_steps=600", "num_steps=1"), ("pgd40", "pgd2"), ("digits.test.images,", "digits.test.images[:8],"),
              ("digits.test.labels,", "digits.test.labels[:8],")]  # fmt: skip
LAUNCHERS = "train|evaluate|reproduce|export|prepare_data|report"


def blocks(page):
    for indent, kind, title, body in BLOCK.findall(page.read_text()):
        yield kind, title, re.sub(f"^{indent}", "", body, flags=re.MULTILINE)


def commands(body):
    for line in body.replace("\\\n", " ").splitlines():
        command, _, comment = line.partition("#")
        if command.strip():
            yield shlex.split(command), comment.split(maxsplit=1)[:1]


@pytest.fixture
def small(monkeypatch):
    """The package's networks become those of `tiny_networks.py`; what takes minutes is planned and not done."""
    registered = networks.build_classifier

    def build_classifier(name, num_classes, *_):
        return tiny.build_classifier(num_classes) if name in networks.CLASSIFIERS else registered(name, num_classes)

    for module in (networks, networks.inference):
        monkeypatch.setattr(module, "build_classifier", build_classifier)
        monkeypatch.setattr(module, "build_generator", lambda name, channels, *_, **__: tiny.build_generator(channels))
    forget = [networks.inference.classify.cache_clear, networks.inference.generate.cache_clear]
    for cached in forget:
        cached()
    monkeypatch.setattr(evaluation.alarms, "check_model", lambda *_, **__: [])
    monkeypatch.setattr(reproduction, "run", lambda plan, output, **settings: ("planned", {}))
    monkeypatch.setattr(data, "prepare", lambda name, **settings: name)
    yield
    for name in set(networks.classifiers.MODULES) - set(networks.CLASSIFIERS):  # What a page registers.
        del networks.classifiers.MODULES[name]
    for cached in (*forget, registered.cache_clear):
        cached()


def run(words, comment, launch):
    """Runs a command of a page, or reads it where that is all that can be done here."""
    if words[0] == "bash":
        assert (ROOT / words[1]).exists()
        # The others install, or are run by test_quickstart.py, test_pod_scripts.py and test_multihost.py.
        if "--dry_run" in words and (ROOT / ".git").exists():
            subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
        return
    if words[0] in ("pip", "source", "python3", "git", "cd", "for"):
        return
    installed = re.fullmatch(r"robust-gan-([a-z-]+)", words[0])
    assert installed or words[0] == "python", words
    found = installed or re.fullmatch(rf"launch/({LAUNCHERS})\.py", words[1])
    if not found:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            runpy.run_path(words[1], run_name="__main__")
        assert out.getvalue() or words[1].startswith("make")
        return
    name, arguments = found[1].replace("-", "_"), words[1:] if installed else words[2:]
    assert name in LAUNCHERS.split("|"), words
    for argument in arguments:
        if argument.startswith(("--attacks=", "--sequential=")):
            evaluation.attack_names(argument.partition("=")[2])
    # Shipped models have networks of the real size.
    long = comment in (["accelerator"], ["hours"]) or any("zoo:" in argument for argument in arguments)
    if long and name == "evaluate":
        return  # What it evaluates is not there; its attacks were read.
    if long and name == "train":
        arguments = [*arguments, "--print_config"]
    ended = launch(name, *arguments, *SHORT.get(name, []))
    assert ended.code in (0, None), (words, ended.err)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(kind == "sh" for kind, *_ in blocks(page))], ids=lambda page: page.name
)
def test_the_commands_of_a_page_run(page, launch, small, tmp_path, monkeypatch):
    if page.name == "pytorch.md":
        pytest.importorskip("torch")
    for name in ("configs", "launch"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("ROBUST_GAN_DATA_DIR", str(tmp_path / "data"))
    for kind, title, body in blocks(page):
        if kind == "python" and title:
            for long, short in IN_SCRIPTS:
                body = body.replace(long, short)
            (tmp_path / title).write_text(body)
        elif kind == "sh":
            for words, comment in commands(body):
                run(words, comment, launch)


RECORDS = [
    (page.name, shlex.split(command))
    for page in PAGES
    for command in re.findall(
        r"^ {4}((?:python launch/|robust-gan-).*)", page.read_text().replace("\\\n", " "), re.MULTILINE
    )
]


@pytest.mark.parametrize(("page", "words"), RECORDS, ids=[f"{page} {words[0]} {words[1]}" for page, words in RECORDS])
def test_the_commands_of_what_was_measured_are_such_as_there_are(page, words):
    name = (
        pathlib.Path(words[1]).stem if words[0] == "python" else words[0].removeprefix("robust-gan-").replace("-", "_")
    )
    source = (ROOT / "robust_gan" / "cli" / f"{name}.py").read_text()
    flags = dict(word.removeprefix("--").partition("=")[::2] for word in words if word.startswith("--"))
    for flag, value in flags.items():
        if not flag.startswith("config."):
            assert re.search(rf'DEFINE_\w+\(\s*"{flag}"', source), flag
        if flag in ("attacks", "sequential"):
            evaluation.attack_names(value)
