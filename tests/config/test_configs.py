"""Every built-in config builds, and each of its methods takes one step on tiny arrays."""

import functools
import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_gan import config as config_lib
from robust_gan import game as game_lib
from robust_gan import networks
from robust_gan.config import methods
from robust_gan.types import Batch

CONFIGS = sorted((pathlib.Path(__file__).resolve().parents[2] / "configs").glob("*.py"))
SHAPES = {"digits": (8, 8, 1), "mnist": (28, 28, 1)}
COUNTS = {
    "mnist": (83_466, 413_504),
    "cifar10": (272_762, 7_892_099),
    "cifar10_wide": (26_800_154, 7_892_099),
    "cifar10_resnet18": (11_173_962, 186_819),
    "svhn": (272_858, 7_892_099),
    "cifar100": (278_612, 7_892_099),
}


def load(path):
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configs_of_the_paper_are_there():
    assert {path.stem for path in CONFIGS} >= {"digits", "mnist", "svhn", "cifar10", "cifar10_wide", "cifar100"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "method"),
    [(path, name) for path in CONFIGS for name in ("none", "pgd", "generator")]
    + [(path, name) for path in CONFIGS if path.stem == "mnist" for name in methods.METHODS],
    ids=lambda value: getattr(value, "stem", value),
)
def test_every_config_builds_and_takes_one_step(path, method):
    config = load(path).get_config(method)
    if config.adversary.name == "ensemble":
        config.adversary.ensemble.sources = ("runs/none",)
    config_lib.validate(config)
    assert config_lib.from_dict(json.loads(json.dumps(config_lib.to_dict(config)))) == config
    shape = SHAPES.get(path.stem, (32, 32, 3))
    classes = 100 if path.stem == "cifar100" else 10
    source = jax.tree_util.Partial(lambda images: jnp.zeros((images.shape[0], classes)) + images.sum())
    game = game_lib.from_config(config, num_classes=classes, channels=shape[-1], sources=[source])
    batch = Batch(jax.ShapeDtypeStruct((2, *shape), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32))
    # Traced with the shapes alone: the wide classifier would take minutes to run here.
    state = jax.eval_shape(functools.partial(game_lib.init, game), jax.random.key(0), batch.images)
    after, metrics = jax.eval_shape(functools.partial(game_lib.train_step, game), state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert "classifier_loss" in metrics
    if path.stem in COUNTS and config.classifier.loss != "ibp":
        assert networks.count_params(state.classifier.params) == COUNTS[path.stem][0]
        if method == "generator":
            assert networks.count_params(state.adversary.params) == COUNTS[path.stem][1]


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem in ("digits", "mnist")], ids=lambda p: p.stem)
def test_the_small_configs_run_a_step_for_real(path):
    config = load(path).get_config()
    config.adversary.generator.steps = 1
    shape = SHAPES[path.stem]
    game = game_lib.from_config(config, num_classes=10, channels=1)
    rng = np.random.default_rng(0)
    batch = Batch(jnp.asarray(rng.uniform(size=(4, *shape)), jnp.float32), jnp.arange(4))
    state = game_lib.init(game, jax.random.key(0), batch.images)
    after, metrics = jax.jit(functools.partial(game_lib.train_step, game))(state, batch, earlier=[batch])
    assert all(np.isfinite(value) for value in jax.tree.leaves(metrics))
    assert int(after.step) == 1


@pytest.mark.packaging
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_file_is_found_from_any_folder(tmp_path, path):
    """It is run to its end, after which a workdir that cannot be is refused."""
    (tmp_path / "file").write_text("mine")
    train = path.parents[1] / "launch" / "train.py"
    command = [sys.executable, train, f"--config={path}:pgd", "--config.seed=1", f"--workdir={tmp_path}/file"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"error: the workdir {tmp_path}/file is a file: give a folder\n"


def test_methods_differ_as_their_authors_do():
    digits = load(next(path for path in CONFIGS if path.stem == "digits"))
    configs = {name: digits.get_config(name) for name in methods.METHODS}
    weights = {name: (c.classifier.clean_weight, c.classifier.adversarial_weight) for name, c in configs.items()}
    assert weights["pgd"] == weights["fgsm"] == weights["n_fgsm"] == weights["cond_generator_adv_only"] == (0.0, 1.0)
    assert weights["ensemble"][1] == 3 * weights["ensemble"][0]
    assert weights["trades"] == (1.0, 6.0)
    assert weights["generator"] == weights["ensemble_tramer"] == weights["cond_generator_refined"] == (1.0, 1.0)
    released = configs["released"].penalty
    assert (released.coefficient, released.form, released.step) == (-0.1, "finite_difference", 0.01)
    assert {name for name, c in configs.items() if c.penalty.coefficient} == {
        "generator", "generator_negative_penalty", "generator_finite_difference", "released",
    }  # fmt: skip


def test_the_short_budget_of_cifar10_is_one_schedule_for_all_methods():
    get_config = load(next(path for path in CONFIGS if path.stem == "cifar10")).get_config
    for name in methods.METHODS:
        config = get_config(f"{name}/short")
        config.adversary.ensemble.sources = ("runs/none",) if config.adversary.name == "ensemble" else ()
        config_lib.validate(config)
        optimizer = config.classifier.optimizer
        assert config.num_steps == optimizer.schedule_steps == 5_742  # 15 epochs
        assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.decay_steps) == (0.2, 5e-4, ())
        assert (config.threat.epsilon, config.classifier.ema_decay) == (8 / 255, 0.998)
    sdi = get_config("cond_generator_sdi/short").adversary.generator
    assert (sdi.final_fgsm_step, sdi.start, sdi.update_every) == (1.0, "noise", 5)
    assert get_config("n_fgsm").num_steps == 200_000


def test_budgets_of_mnist():
    get_config = load(next(path for path in CONFIGS if path.stem == "mnist")).get_config
    paper, short = get_config("released"), get_config("released/short")
    short.num_steps, short.validation.every = paper.num_steps, paper.validation.every
    short.classifier.optimizer.decay_steps = paper.classifier.optimizer.decay_steps
    assert short == paper
    short, long = get_config("pgd/short"), get_config("pgd/long")
    assert (short.num_steps, short.adversary.epsilon_warmup_steps, short.validation.every) == (3_000, 750, 500)
    assert (long.num_steps, long.adversary.epsilon_warmup_steps, long.validation.every) == (12_000, 3_000, 2_000)
    config_lib.validate(long)


def test_baselines_of_the_papers_configs_are_those_of_the_released_code():
    released = {path.stem: load(path).get_config for path in CONFIGS if path.stem in ("mnist", "cifar10", "svhn")}
    for get_config in released.values():
        none, pgd, ensemble = (get_config(name) for name in ("none", "pgd", "ensemble"))
        assert [c.classifier.optimizer.weight_decay for c in (none, pgd, ensemble)] == [1e-4] * 3
        assert not pgd.adversary.pgd.keep_best
        assert (pgd.adversary.pgd.num_steps, pgd.adversary.pgd.step_size) == (10, 0.0)  # 2.5 epsilon / 10
        settings = ensemble.adversary.ensemble
        assert (settings.scheme, settings.pgd_steps, settings.keep_best, settings.clean_share) == (
            "paper", 10, False, 0.25,
        )  # fmt: skip
        assert (ensemble.classifier.clean_weight, ensemble.classifier.adversarial_weight) == (0.0, 1.0)
        assert none.classifier.optimizer.restart_momentum
        assert get_config("released").penalty.decay
        assert not get_config("generator").penalty.decay
    of_digits = load(next(path for path in CONFIGS if path.stem == "digits")).get_config("ensemble")
    assert (of_digits.classifier.clean_weight, of_digits.classifier.adversarial_weight) == (0.5, 1.5)
    assert of_digits.adversary.ensemble.clean_share == 0
    assert load(next(path for path in CONFIGS if path.stem == "mnist")).get_config("pgd/short").adversary.pgd.keep_best


def test_the_constants_are_those_of_the_paper():
    methods = {path.stem: load(path).get_config() for path in CONFIGS}
    cifar, svhn, mnist = methods["cifar10"], methods["svhn"], methods["mnist"]
    assert [c.threat.epsilon for c in (cifar, svhn, mnist)] == [8 / 256, 0.05, 0.3]
    assert [c.classifier.optimizer.learning_rate for c in (cifar, svhn, mnist)] == [0.1, 0.01, 0.01]
    assert [c.classifier.optimizer.weight_decay for c in (cifar, svhn, mnist)] == [1e-5, 1e-4, 1e-5]
    assert [c.num_steps for c in (cifar, svhn, mnist)] == [200_000, 200_000, 40_000]
    assert [c.penalty.step for c in (cifar, svhn, mnist)] == [0.01, 0.001, 0.001]
    assert {c.batch_size for c in (cifar, svhn, mnist)} == {64}
    assert {c.adversary.generator.steps for c in (cifar, svhn, mnist)} == {5}
    assert [(c.data.augmentation, c.data.padding) for c in (cifar, svhn, mnist)] == [
        ("crop_flip", 2), ("none", 2), ("none", 2),
    ]  # fmt: skip
    assert svhn.data.extra_size == 80_000
    assert 60_000 - mnist.data.validation_size == 55_000
    assert cifar.classifier.optimizer.decay_steps == svhn.classifier.optimizer.decay_steps == (100_000,)
    assert [c.adversary.generator.network for c in (cifar, svhn, mnist)] == [
        "resnet_generator", "resnet_generator_svhn", "mnist_generator",
    ]  # fmt: skip
    generator = mnist.adversary.generator
    assert generator.steps * generator.batches_per_step == 25
    # The classifier's rate falls after 100,000 minibatches of 200,000.
    assert mnist.classifier.optimizer.decay_steps[0] * generator.batches_per_step == 100_000
    adam = cifar.adversary.generator.optimizer
    assert (adam.name, adam.learning_rate, adam.b1, adam.b2, adam.decay_steps) == ("adam", 0.002, 0.5, 0.999, ())
