"""N devices are one device: under vmap, pmap and shard_map, to 1e-5, with one trace."""

import functools
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from robust_gan import game as game_lib
from robust_gan import parallel
from robust_gan.config import (
    AdversaryConfig,
    ClassifierConfig,
    Config,
    DataConfig,
    GeneratorConfig,
    IBPConfig,
    OptimizerConfig,
    PenaltyConfig,
    PGDConfig,
)
from robust_gan.errors import UserError
from robust_gan.training import multi_step, nonfinite
from robust_gan.types import Batch

pytestmark = pytest.mark.usefixtures("tiny_networks")

DEVICES = 4
SGD = OptimizerConfig(name="sgd", learning_rate=0.05, momentum=0.9, weight_decay=1e-4)
CASES = {
    "none": Config(adversary=AdversaryConfig(name="none")),
    "pgd": Config(adversary=AdversaryConfig(name="pgd", pgd=PGDConfig(num_steps=2))),
    "generator": Config(adversary=AdversaryConfig(generator=GeneratorConfig(steps=2, optimizer=SGD))),
    "exact penalty": Config(
        adversary=AdversaryConfig(generator=GeneratorConfig(steps=1, optimizer=SGD)),
        penalty=PenaltyConfig(coefficient=0.05),
    ),
    "finite difference": Config(
        adversary=AdversaryConfig(generator=GeneratorConfig(steps=1, optimizer=SGD)),
        # A large step: the quotient of a small one amplifies rounding.
        penalty=PenaltyConfig(coefficient=-0.01, form="finite_difference", step=1.0),
    ),
    "certified term": Config(
        classifier=ClassifierConfig(loss="ibp", ibp=IBPConfig(weight=0.5, epsilon=0.01)),
        adversary=AdversaryConfig(generator=GeneratorConfig(steps=1, optimizer=SGD)),
    ),
    "running statistics": Config(
        classifier=ClassifierConfig(attack_bn_mode="running"),
        adversary=AdversaryConfig(generator=GeneratorConfig(steps=1, optimizer=SGD)),
    ),
}


def make_batch(count=16):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(size=(count, 8, 8, 1)), jnp.float32)
    return Batch(images, jnp.asarray(rng.integers(0, 10, count), jnp.int32))


def start(config, batch):
    config.classifier.optimizer = SGD
    game = game_lib.from_config(config, num_classes=10, channels=1)
    return game, game_lib.init(game, jax.random.key(0), batch.images)


@functools.cache
def on_one_device(case):
    """The game of a case, its state before a step, and what the step gives on one device."""
    batch = make_batch()
    game, state = start(CASES[case], batch)
    return game, state, jax.jit(functools.partial(game_lib.train_step, game))(state, batch)


def assert_same(left, right):
    data = [
        jax.tree.map(lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, tree)
        for tree in (left, right)
    ]
    chex.assert_trees_all_close(*data, rtol=1e-5, atol=1e-5)


def mapped_step(kind, game):
    """Compiles the step over the axis and returns whole states again."""
    step = functools.partial(game_lib.train_step, game, axis_name=parallel.AXIS)
    share = lambda batch: jax.tree.map(lambda x: x.reshape(DEVICES, -1, *x.shape[1:]), batch)  # noqa: E731
    if kind == "vmap":
        mapped = jax.jit(jax.vmap(step, in_axes=(None, 0), out_axes=0, axis_name=parallel.AXIS))
        return lambda state, batch: jax.tree.map(lambda x: x[0], mapped(state, share(batch)))
    if kind == "pmap":
        mapped = jax.pmap(step, axis_name=parallel.AXIS, in_axes=(None, 0), out_axes=(None, None))
        return lambda state, batch: mapped(state, share(batch))
    mesh = Mesh(np.asarray(jax.devices()[:DEVICES]), (parallel.AXIS,))
    mapped = jax.jit(
        jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(parallel.AXIS)),
            out_specs=PartitionSpec(),
            check_vma=False,
        )
    )
    return mapped


# What differs between the ways of mapping is how collectives transpose, so the cases with most of them see all three.
@pytest.mark.parametrize(
    ("case", "kind"),
    [
        (case, kind)
        for case in CASES
        for kind in (("pmap", "vmap", "shard_map") if case in ("pgd", "exact penalty") else ("pmap",))
    ],
)
def test_one_device_is_four(case, kind):
    game, state, alone = on_one_device(case)
    assert_same(alone, mapped_step(kind, game)(state, make_batch()))


def test_a_mapping_that_would_sum_the_gradients_is_refused():
    game, state, _ = on_one_device("pgd")
    mesh = Mesh(np.asarray(jax.devices()[:DEVICES]), (parallel.AXIS,))
    specs = (PartitionSpec(), PartitionSpec(parallel.AXIS))
    step = functools.partial(game_lib.train_step, game, axis_name=parallel.AXIS)
    mapped = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
    with pytest.raises(ValueError, match="averages gradients over the devices itself: give shard_map check_vma=False"):
        jax.eval_shape(mapped, state, make_batch())


@pytest.mark.slow
def test_a_batch_that_jit_splits_is_the_batch_on_one_device():
    game, state, alone = on_one_device("pgd")
    mesh = Mesh(np.asarray(jax.devices()[:DEVICES]), (parallel.AXIS,))
    batch = jax.device_put(make_batch(), NamedSharding(mesh, PartitionSpec(parallel.AXIS)))
    assert_same(alone, jax.jit(functools.partial(game_lib.train_step, game))(state, batch))


@pytest.mark.slow
def test_the_training_step_is_traced_once_and_data_stay_where_they_are():
    config = Config(
        data=DataConfig(augmentation="crop_flip", padding=1),
        adversary=AdversaryConfig(generator=GeneratorConfig(steps=1, batches_per_step=2, optimizer=SGD)),
        batch_size=16,
    )
    rng = np.random.default_rng(0)
    arrays = {
        "images": rng.integers(0, 256, (50, 8, 8, 1), np.uint8),
        "labels": rng.integers(0, 10, 50).astype(np.int32),
    }
    results = []
    for count in (1, DEVICES):
        devices = parallel.find_devices(num_devices=count)
        game, state = start(config, Batch(jnp.zeros((1, 8, 8, 1)), None))
        traces = []

        def step(*arguments, game=game, traces=traces):
            traces.append(None)
            return multi_step.run_steps(game, config, "stop", *arguments)

        compiled = parallel.map_step(step, devices)
        loop_state, placed = parallel.replicate((multi_step.LoopState(state, nonfinite.init_state()), arrays), devices)
        for index in range(3):
            indices = multi_step.batch_indices(config, index, 1, 1, 50, devices)
            assert indices.positions.shape == (count, 1, 2, 16 // count)
            loop_state, (metrics, _) = compiled(loop_state, placed, indices)
        assert len(traces) == 1
        state = loop_state.train_state
        results.append((jax.device_get(state._replace(key=jax.random.key_data(state.key))), jax.device_get(metrics)))
    chex.assert_trees_all_close(*results, rtol=2e-4, atol=2e-5)


def test_the_loop_transfers_nothing_between_host_and_device_but_its_indices():
    config = Config(adversary=AdversaryConfig(name="none"), batch_size=16)
    devices = parallel.find_devices(num_devices=1)
    game, state = start(config, Batch(jnp.zeros((1, 8, 8, 1)), None))
    arrays = {"images": np.zeros((50, 8, 8, 1), np.uint8), "labels": np.zeros(50, np.int32)}
    loop_state, arrays = parallel.replicate((multi_step.LoopState(state, nonfinite.init_state()), arrays), devices)
    play = parallel.map_step(functools.partial(multi_step.run_steps, game, config, "stop"), devices)
    indices = parallel.replicate(multi_step.batch_indices(config, 0, 2, 3, 50, devices), devices)
    loop_state, _ = play(loop_state, arrays, indices)
    with jax.transfer_guard("disallow_explicit"):
        loop_state, (metrics, counts) = play(loop_state, arrays, indices)
    assert int(loop_state.train_state.step) == 4
    assert int(counts.skipped) == 0
    assert np.isfinite(float(metrics["classifier_loss"]))


def test_devices_share_each_minibatch_in_order():
    config = Config(adversary=AdversaryConfig(generator=GeneratorConfig(batches_per_step=3)), batch_size=8)
    one = multi_step.batch_indices(config, 7, 2, 2, 100, parallel.find_devices(num_devices=1)).positions
    four = multi_step.batch_indices(config, 7, 2, 2, 100, parallel.find_devices(num_devices=4)).positions
    np.testing.assert_array_equal(one[0], np.concatenate(list(four), axis=2))


def test_many_steps_do_not_run_away_from_the_host():
    """Without a bound on the lead, several CPU devices abort the process after some dozens of steps."""
    program = """
import jax, jax.numpy as jnp, numpy as np
from robust_gan import parallel
devices = parallel.find_devices()
assert len(devices) == 4
step = parallel.map_step(lambda s, d, x: (s + jax.lax.psum(x.sum(), parallel.AXIS), s), devices)
state, data = parallel.replicate((jnp.zeros(()), jnp.zeros(())), devices)
for _ in range(1000):
    state, _ = step(state, data, np.ones((4, 1), np.float32))
print(float(state))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert ended.stdout.strip() == "4000.0", ended.stderr


def test_an_absent_platform_and_too_many_devices_are_refused_in_one_sentence():
    with pytest.raises(UserError, match=r"no tpu was found here, only cpu"):
        parallel.find_devices("tpu")
    with pytest.raises(UserError, match=r"5 devices were asked for, but there are 4"):
        parallel.find_devices(num_devices=5)
    with pytest.raises(UserError, match=r"-1 devices"):
        parallel.find_devices(num_devices=-1)


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_do():
    with pytest.raises(UserError, match=r"batch_size 66 is not divisible by the 4 devices: take 64 or 68"):
        parallel.check_batch_size(66, parallel.find_devices())
    with pytest.raises(UserError, match=r"take 4$"):
        parallel.check_batch_size(3, parallel.find_devices())


def test_rows_come_back_in_order():
    devices = parallel.find_devices()
    rows = np.arange(24.0, dtype=np.float32).reshape(8, 3)
    doubled = parallel.map_batch(_double, devices)(jnp.float32(2), parallel.shard(rows, devices))
    np.testing.assert_array_equal(parallel.gather(doubled), 2 * rows)


def _double(scale, share):
    return scale * share


def test_the_devices_of_a_cpu_share_aligned_arrays():
    array = parallel.aligned(np.arange(100_003, dtype=np.int16).reshape(-1, 1))
    assert np.array_equal(array[:, 0], np.arange(100_003).astype(np.int16))
    copies = parallel.replicate({"images": array}, parallel.find_devices(num_devices=DEVICES))["images"]
    places = {shard.data.unsafe_buffer_pointer() for shard in copies.addressable_shards}
    assert places == {array.ctypes.data}
    with pytest.raises(ValueError, match="read-only"):  # What the devices read must not change.
        array[0] = 1
