"""The memory of perturbations: what is written, where, and what the next visit of an image starts from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_gan import LinfThreat, parallel
from robust_gan import game as game_lib
from robust_gan.attacks.generator import Design, generate
from robust_gan.config import AdversaryConfig, Config, DataConfig, GeneratorConfig, OptimizerConfig
from robust_gan.data import augmentation
from robust_gan.game import memory
from robust_gan.training import multi_step
from robust_gan.types import Batch

pytestmark = pytest.mark.usefixtures("tiny_names")
SHAPE, NUM_IMAGES, BATCH = (8, 8, 1), 24, 8


def make_config(**generator):
    return Config(
        data=DataConfig(augmentation="crop_flip", padding=2),
        adversary=AdversaryConfig(
            generator=GeneratorConfig(
                network="tiny",
                steps=1,
                inputs=("gradient", "perturbation"),
                start="memory",
                optimizer=OptimizerConfig(learning_rate=0.01),
                **generator,
            )
        ),
        batch_size=BATCH,
    )


def make_run(config):
    rng = np.random.default_rng(0)
    arrays = {
        "images": jnp.asarray(rng.integers(0, 256, (NUM_IMAGES, *SHAPE), dtype=np.uint8)),
        "labels": jnp.asarray(rng.integers(0, 10, NUM_IMAGES, dtype=np.int32)),
    }
    game = game_lib.from_config(config, num_classes=10, channels=1)
    state = game_lib.init(game, jax.random.key(0), jnp.zeros((2, *SHAPE)))
    return game, state._replace(memory=memory.init(SHAPE, NUM_IMAGES)), arrays


def take_step(game, config, state, arrays, positions, devices=1):
    step = functools.partial(multi_step.training_step, game, config)
    mapped = jax.vmap(step, in_axes=(None, None, 0), out_axes=(None, None), axis_name=parallel.AXIS)
    split = jnp.asarray(positions).reshape(devices, 1, -1)
    if devices > 1:
        mapped = jax.vmap(step, in_axes=(None, None, 0), out_axes=0, axis_name=parallel.AXIS)
        return jax.tree.map(lambda leaf: leaf[0], jax.jit(mapped)(state, arrays, split)[0])
    return jax.jit(mapped)(state, arrays, split)[0]


def test_a_perturbation_is_kept_to_half_a_level_and_inside_the_ball():
    threat = LinfThreat(0.15)
    clean = jax.random.uniform(jax.random.key(0), (4, *SHAPE))
    noise = jax.random.uniform(jax.random.key(1), clean.shape, minval=-1.0)
    images = clean + threat.epsilon * noise
    kept = np.asarray(memory.unpack(memory.pack(images, clean, threat)), np.float64)
    assert np.abs(kept - np.asarray(noise)).max() <= 0.5 / memory.LEVELS + 1e-5
    assert np.abs(kept).max() <= 1


@pytest.mark.parametrize("name", ["none", "crop", "crop_flip"])
def test_what_is_written_is_read_again_under_any_augmentation(name):
    rng = np.random.default_rng(0)
    positions = jnp.array([5, 0, 3, 7])
    full = jnp.asarray(rng.integers(-127, 128, (9, *SHAPE), dtype=np.int8))
    augment = functools.partial(augmentation.augment, name, jax.random.split(jax.random.key(3), 4), padding=2)
    rows = memory.read(full, positions, augment)
    # Written back, every pixel that the augmentation kept is where it was, and every other one is 0.
    written = np.asarray(memory.write(jnp.zeros_like(full), positions, rows, augment))
    kept = np.asarray(memory.write(jnp.zeros_like(full), positions, augment(jnp.ones_like(rows)), augment))
    assert np.array_equal(written, np.asarray(full) * kept)
    assert kept[np.asarray(positions)].mean() > 0.4
    assert not kept[[1, 2, 4, 6, 8]].any()
    assert np.array_equal(np.asarray(memory.read(jnp.asarray(written), positions, augment)), np.asarray(rows))


def test_a_step_remembers_the_images_that_the_classifier_learned_from():
    config = make_config()
    config.data.augmentation = "none"
    game, state, arrays = make_run(config)
    before = jax.random.randint(jax.random.key(5), state.memory.shape, -127, 128).astype(jnp.int8)
    state, positions = state._replace(memory=before), np.array([4, 9, 2, 0, 23, 7, 1, 6])
    after = take_step(game, config, state, arrays, positions)
    clean = augmentation.to_unit(arrays["images"][positions])
    # The generator after its update, from the remembered perturbations, against the classifier before its update.
    batch = Batch(clean, arrays["labels"][positions], memory.unpack(before[positions]))
    attacked = game_lib.attacked_classifier(game, state.classifier, None)
    images = game.adversary.perturb(after.adversary, attacked, batch, jax.random.split(jax.random.key(0), BATCH))
    rows = memory.pack(images, clean, game.memory)
    assert np.abs(np.asarray(after.memory)[positions].astype(int) - np.asarray(rows)).max() <= 1
    others = np.setdiff1d(np.arange(NUM_IMAGES), positions)
    assert np.array_equal(np.asarray(after.memory)[others], np.asarray(before)[others])
    assert np.mean(np.asarray(after.memory)[positions] != np.asarray(before)[positions]) > 0.5


def test_the_generator_starts_from_the_perturbation_it_is_given():
    threat, images, seen = LinfThreat(0.25), jnp.full((2, *SHAPE), 0.5), []

    def apply(carry, inputs):
        seen.append(inputs)
        return jnp.zeros_like(images), carry

    start = jax.random.uniform(jax.random.key(0), images.shape, minval=-1.0)
    design = Design(inputs=("perturbation",), start="memory")
    labels = jnp.zeros(2, jnp.int32)
    generate(apply, (), None, None, images, labels, threat, design, 10, start=start)
    np.testing.assert_allclose(seen[0][..., 1:], 0.5 + 0.5 * start, atol=1e-6)
    assert not design.is_random  # As an attack after training it needs no key: it starts at the image.


@pytest.mark.slow
def test_four_devices_remember_the_same_as_one():
    config = make_config()
    game, state, arrays = make_run(config)
    positions = np.array([4, 9, 2, 0, 23, 7, 1, 4])  # One image twice: the last perturbation counts.
    alone, shared = (take_step(game, config, state, arrays, positions, devices) for devices in (1, 4))
    assert np.abs(np.asarray(alone.memory).astype(int) - np.asarray(shared.memory)).max() <= 1
    assert np.asarray(alone.memory).any()


def test_the_memory_costs_a_byte_per_value():
    assert memory.init((32, 32, 3), 10).nbytes == 10 * 32 * 32 * 3


@pytest.mark.slow
def test_a_discarded_step_leaves_the_memory_as_it_was():
    config = make_config()
    game, state, arrays = make_run(config)
    broken = state._replace(
        classifier=state.classifier._replace(params=jax.tree.map(lambda leaf: leaf * jnp.nan, state.classifier.params))
    )
    loop_state = multi_step.LoopState(broken, multi_step.nonfinite.init_state(0))
    indices = multi_step.BatchIndices(jnp.arange(BATCH).reshape(1, 1, 1, BATCH), jnp.ones(1, jnp.int32))
    run = functools.partial(multi_step.run_steps, game, config, "skip")
    mapped = jax.vmap(run, in_axes=(None, None, 0), out_axes=0, axis_name=parallel.AXIS)
    after, _ = jax.jit(mapped)(loop_state, arrays, indices)
    assert not np.asarray(after.train_state.memory).any()
    assert int(after.nonfinite.skipped[0]) == 1
