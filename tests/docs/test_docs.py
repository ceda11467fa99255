"""The tables of the documentation say what is so."""

import pathlib
import re
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_gan import LinfThreat, attacks, evaluation

pytestmark = pytest.mark.docs

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
ROWS = [
    (match[1], int(match[2]), int(match[3]))
    for match in re.finditer(r"^\| `(\w+)`.*? \| (\d+) \| (\d+) \| ", (DOCS / "attacks.md").read_text(), re.M)
]
WEIGHTS = jnp.asarray(np.random.default_rng(0).normal(size=(16, 10)) * 1e-3, jnp.float32)
PASSES = {"forward": 0, "backward": 0}


def count(which):
    return lambda pixels: PASSES.__setitem__(which, PASSES[which] + len(pixels))


@jax.custom_vjp
def tap(images):
    jax.debug.callback(count("forward"), images[:, 0, 0, 0])
    return images


def _forward(images):
    return tap(images), None


def _backward(_, cotangent):
    jax.debug.callback(count("backward"), cotangent[:, 0, 0, 0])
    return (cotangent,)


tap.defvjp(_forward, _backward)


def steadfast(images):
    return tap(images).reshape(images.shape[0], -1) @ WEIGHTS + 5.0 * jnp.eye(10)[0]


@pytest.mark.parametrize(("name", "gradients", "passes"), ROWS, ids=[row[0] for row in ROWS])
def test_the_passes_of_an_attack_are_counted(name, gradients, passes):
    PASSES.update(forward=0, backward=0)
    attack = jax.jit(attacks.by_name(name))
    images, labels = jnp.full((1, 4, 4, 1), 0.5), jnp.zeros(1, jnp.int32)
    jax.block_until_ready(
        attack(jax.tree_util.Partial(steadfast), jax.random.key(0), images, labels, LinfThreat(0.1))
    )  # fmt: skip
    jax.effects_barrier()
    assert {"forward": passes, "backward": gradients} == PASSES


def test_every_attack_alarm_and_file_is_in_the_tables():
    text = (DOCS / "attacks.md").read_text()
    for name in (*attacks.VERSIONS, *evaluation.RETRAINED, evaluation.GENERATOR):
        assert f"`{name}`" in text
    assert {name for names in attacks.VERSIONS.values() for name in names} <= set(re.findall(r"`(\w+)`", text))
    for picture in evaluation.PLOTS:
        assert f"`{picture}.png`" in text
    source = (DOCS.parent / "robust_gan" / "evaluation" / "alarms.py").read_text()
    alarms = set(re.findall(r'Alarm\(\s*"(\w{2,})"', source))
    assert len(alarms) == 13
    for name in alarms:
        assert f"| `{name}` |" in text
    assert len(ROWS) == 15


def test_a_suite_holds_what_its_row_says():
    text, held = (DOCS / "attacks.md").read_text(), {}
    for name, *columns in re.findall(r"^\| `(quick|paper|autoattack|full)`.*? \|(.*?)\|(.*) \|$", text, re.M):
        named = [re.findall(r"`(\w+)`", column) for column in columns]
        # A suite stands for its own attacks of that column.
        held[name] = [
            [attack for word in words for attack in (held[word][place] if word in held else [word])]
            for place, words in enumerate(named)
        ]
    assert held == {
        name: [part.split(",") if part else [] for part in suite]
        for name, suite in evaluation.SUITES.items()
        if any(suite)  # That of corruptions holds no attack.
    }


@pytest.mark.parametrize("page", [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.name)
def test_the_attacks_that_a_page_advises_are_such_as_there_are(page):
    flags = re.findall(r"--(attacks|sequential|suite)=([\w,.:]+)", page.read_text())
    for flag, value in flags if page.name != "errors.md" else ():  # Its mistakes are made: tests/test_errors.py.
        # Either raises where there is no such suite or attack.
        evaluation.get_suite(value, None, None) if flag == "suite" else evaluation.attack_names(value)


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.relative_to(DOCS)))
def test_what_a_page_shows_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    for block in blocks if page.name not in ("interop.md", "pytorch.md") else ():  # In tests that know what these need.
        exec(compile(block, page.name, "exec"), {})
    for name in re.findall(r"\]\(((?!http)[^)#]+)\)", page.read_text()):
        assert (page.parent / name).exists(), name


def test_the_layers_are_drawn_as_setup_cfg_has_them():
    drawing = runpy.run_path(str(DOCS / "layers.py"))
    drawn = (DOCS / "images" / "layers.svg").read_text()
    assert drawn == drawing["draw"](drawing["read_layers"]()), "run python docs/layers.py"


def test_every_page_is_in_the_menu():
    menu = set(re.findall(r"[\w/]+\.(?:md|ipynb)", (DOCS.parent / "mkdocs.yml").read_text().partition("\nnav:")[2]))
    assert {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} <= menu
