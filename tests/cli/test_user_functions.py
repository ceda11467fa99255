"""Adversaries and networks of the user's own, `package.module:function`: trained, loaded, refused."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_gan import LinfThreat, checkpoint

MODULE = '''
import jax
import jax.numpy as jnp
import robust_gan as rg

seen = []


def no_arguments():
    return rg.adversaries.none()


def signs(threat, config):
    """Adds the sign of the gradient; its state counts the steps."""
    seen.append(config.pgd.num_steps)

    def perturb(state, classifier_fn, batch, keys, *, axis_name=None):
        return rg.fgsm(classifier_fn, None, batch.images, batch.labels, threat)

    def improve(state, classifier_fn, batch, keys, *, axis_name=None):
        return state + 1, {}

    return rg.Adversary(lambda key, images: jnp.zeros(()), improve, perturb)


def network(num_classes):
    def init(key, images):
        return {"kernel": 0.1 * jax.random.normal(key, (images[0].size, num_classes))}, {}

    def apply(params, batch_stats, images, *, train, axis_name=None):
        return images.reshape(len(images), -1) @ params["kernel"], batch_stats

    return rg.Network(init, apply)


def noise(channels):
    def init(key, images):
        return {"scale": jnp.ones(channels)}, {}

    def apply(params, batch_stats, images, *, train, axis_name=None):
        return jnp.tanh(params["scale"] * (images[..., :channels] - 0.5)), batch_stats

    return rg.Network(init, apply)


constant = 3


def needs(width):
    return network(10)


def fails():
    raise RuntimeError("boom")


def leaves():
    raise SystemExit(0)


def text():
    return "text"


def without_perturb(threat):
    return signs(threat, rg.Config().adversary)._replace(perturb=None)


def changes_shape(threat):
    return signs(threat, rg.Config().adversary)._replace(perturb=lambda *a, **k: jnp.zeros(3))


def raises_in_perturb(threat):
    return signs(threat, rg.Config().adversary)._replace(perturb=lambda *a, **k: {}["missing"])


def changes_state(threat):
    return signs(threat, rg.Config().adversary)._replace(improve=lambda *a, **k: ((), {}))


def flat(num_classes):
    return rg.Network(network(num_classes).init, lambda params, stats, images, **_: (images.sum((1, 2, 3)), stats))


def raises_in_apply(num_classes):
    return rg.Network(network(num_classes).init, lambda *a, **k: 1 / 0)
'''
SHORT = [
    "--config.num_steps=2", "--config.data.train_size=64", "--config.data.validation_size=32",
    "--config.batch_size=16", "--config.validation.every=2", "--config.validation.pgd_steps=1", "--num_devices=1",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch, launch):
    """A working directory with a package of the user's, and a module that raises."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "parts.py").write_text(MODULE)
    (tmp_path / "raising.py").write_text("1 / 0\n")
    (tmp_path / "leaving.py").write_text("raise SystemExit(0)\n")
    yield tmp_path
    for name in ("theirs.parts", "theirs", "raising", "leaving"):
        sys.modules.pop(name, None)
    sys.path[:] = [place for place in sys.path if place != str(tmp_path)]


@pytest.mark.slow
def test_an_adversary_and_a_network_of_the_users_are_trained_and_loaded(launch, folder):
    flags = [
        "--config=digits:pgd", "--config.adversary.name=theirs.parts:signs", "--workdir=run",
        "--config.classifier.network=theirs.parts:network", "--config.adversary.epsilon_warmup_steps=2",
    ]  # fmt: skip
    ended = launch("train", *flags, *SHORT)
    assert ended.code == 0, ended.err
    assert json.loads((folder / "run" / "config.json").read_text())["adversary"]["name"] == "theirs.parts:signs"
    logits_fn = checkpoint.load_classifier("run")
    kernel = logits_fn.args[0]["kernel"]
    np.testing.assert_allclose(logits_fn(jnp.ones((2, 8, 8, 1))), np.tile(kernel.sum(0), (2, 1)), rtol=1e-5)
    ended = launch("evaluate", "--checkpoint=run", "--attacks=fgsm", "--num_examples=16", "--num_devices=1")
    assert (ended.code, ended.err) == (0, "")
    (folder / "theirs" / "parts.py").rename(folder / "theirs" / "moved.py")
    for name in ("theirs.parts", "theirs"):
        sys.modules.pop(name)
    ended = launch("evaluate", "--checkpoint=run", "--attacks=fgsm", "--output=report")
    assert (ended.code, ended.out) == (2, "")
    assert "the module theirs.parts of the classifier cannot be imported" in ended.err
    assert not (folder / "report").exists()


@pytest.mark.slow
def test_a_generator_network_of_the_users_attacks(launch, folder):
    ended = launch(
        "train", "--config=digits", "--config.adversary.generator.network=theirs.parts:noise", "--workdir=run",
        "--config.classifier.network=theirs.parts:network", "--config.adversary.generator.steps=1", *SHORT,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    attack = checkpoint.load_attack("run")
    images = jnp.full((2, 8, 8, 1), 0.25)
    moved = attack(
        checkpoint.load_classifier("run"), jax.random.key(0), images, jnp.zeros(2, jnp.int32), LinfThreat(0.1)
    )
    assert float(jnp.abs(moved - images).max()) == pytest.approx(0.1 * np.tanh(0.25), rel=0.2)


ADVERSARIES = {
    "theirs.nosuch:signs": "the module theirs.nosuch of the adversary cannot be imported: No module named",
    "nosuch:signs": "the module nosuch of the adversary cannot be imported: No module named 'nosuch'",
    "raising:signs": "the module raising of the adversary fails: ZeroDivisionError: division by zero",
    "leaving:signs": "the module leaving of the adversary fails: SystemExit: 0",
    "theirs.parts:sings": "the module theirs.parts has no function 'sings'; is it signs?",
    "theirs.parts:constant": "theirs.parts:constant is not a function, but of type int",
    "theirs/parts.py:signs": "an adversary is given as package.module:function",
    "theirs.parts:": "an adversary is given as package.module:function, not 'theirs.parts:'",
    "theirs.parts:needs": "cannot be called with config, threat, num_classes, channels alone (missing a required "
    "argument: 'width')",
    "theirs.parts:fails": "theirs.parts:fails fails: RuntimeError: boom",
    "theirs.parts:leaves": "theirs.parts:leaves fails: SystemExit: 0",
    "theirs.parts:text": "functions init, improve and perturb: the str that it returned has no init",
    "theirs.parts:without_perturb": "improve and perturb: the Adversary that it returned has no perturb",
    "theirs.parts:changes_shape": "must return images of shape (2, 8, 8, 1), not (3,)",
    "theirs.parts:raises_in_perturb": "perturb of the adversary theirs.parts:raises_in_perturb fails on "
    "images of shape (2, 8, 8, 1): KeyError",
    "theirs.parts:changes_state": "must return a state of the same structure, shapes and types",
}
NETWORKS = {
    "nosuch:network": "the module nosuch of the classifier cannot be imported: No module named 'nosuch'",
    "raising:network": "the module raising of the classifier fails: ZeroDivisionError: division by zero",
    "theirs.parts:constant": "theirs.parts:constant is not a function, but of type int",
    "theirs.parts:needs": "cannot be called with num_classes, dtype alone (missing a required argument: 'width')",
    "theirs.parts:text": "functions init and apply: the str that it returned has no init",
    "theirs.parts:no_arguments": "functions init and apply: the Adversary that it returned has no apply",
    "theirs.parts:flat": "must return outputs of shape (2, 10) for images of shape (2, 8, 8, 1), not (2,)",
    "theirs.parts:raises_in_apply": "fails on images of shape (2, 8, 8, 1): ZeroDivisionError",
}
CASES = [
    *(("adversary.name", name, sentence) for name, sentence in ADVERSARIES.items()),
    *(("classifier.network", name, sentence) for name, sentence in NETWORKS.items()),
    *(
        ("adversary.generator.network", name, sentence.replace("classifier", "generator").replace("num_classes, dtype",
         "channels, dtype, remat"))
        for name, sentence in NETWORKS.items() if name.rpartition(":")[2] not in ("flat", "raises_in_apply")
    ),
]  # fmt: skip


@pytest.mark.parametrize(("field", "name", "sentence"), CASES, ids=[f"{field}={name}" for field, name, _ in CASES])
def test_a_function_that_cannot_be_used_is_one_sentence(launch, folder, field, name, sentence):
    config = "digits:generator" if "generator" in field else "digits:pgd"
    ended = launch("train", f"--config={config}", f"--config.{field}={name}", "--workdir=run", *SHORT)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert sentence in ended.err
    assert not (folder / "run").exists()


def test_the_penalty_needs_a_response(launch, folder):
    flags = ["--config=digits:generator", "--config.adversary.name=theirs.parts:signs", "--workdir=run"]
    ended = launch("train", *flags, *SHORT)
    assert (ended.code, ended.out) == (2, "")
    assert "penalty.coefficient is 0.1, but the adversary theirs.parts:signs has no function response" in ended.err
    assert not (folder / "run").exists()
