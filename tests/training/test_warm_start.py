"""Warm starts: the weights of another run, new optimizers, exact resumes, and heads for other classes."""

import shutil

import jax
import numpy as np
import pytest

from robust_gan import checkpoint, parallel, training
from robust_gan import game as game_lib
from robust_gan.config import AdversaryConfig, ClassifierConfig, Config, DataConfig, GeneratorConfig, ValidationConfig
from robust_gan.errors import CheckpointError, UserError
from robust_gan.training import setup, warm_start


def configured(name="generator", **settings):
    """A run of steps that is as short as `tiny_run`, whose networks it has."""
    return Config(
        data=DataConfig(train_size=64, validation_size=32),
        adversary=AdversaryConfig(name=name, generator=GeneratorConfig(steps=1)),
        batch_size=16,
        **{"num_steps": 2, "validation": ValidationConfig(every=9, pgd_steps=1), **settings},
    )


def started(config, num_classes=10):
    """The state at step 0 of a configuration, and what was said."""
    info = checkpoint.DataInfo("digits", (8, 8, 1), num_classes, ())
    game = game_lib.from_config(config, num_classes=num_classes, channels=1)
    state = setup.initial_state(config, game, info.image_shape)
    return state, *warm_start.load(config, info, state)


def are_equal(left, right):
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def networks_of(player):
    return {"params": player.params, "batch_stats": player.batch_stats}


def test_both_players_start_from_a_checkpoint_with_new_optimizers(tiny_run, tmp_path):
    source = checkpoint.export(tiny_run, tmp_path / "tiny.safetensors", 2)
    saved = checkpoint.get_variables(checkpoint.read_record(tiny_run, 2))
    for location in (f"{tiny_run}@2", str(source)):
        cold, warm, said = started(configured(init_from=location, seed=5))
        assert said == f"starts from step 2 of {location}: the classifier and the generator"
        assert are_equal(networks_of(warm.classifier), saved["classifier"])
        assert are_equal(networks_of(warm.adversary), saved["adversary"])
        for player in ("classifier", "adversary"):
            assert are_equal(getattr(warm, player).opt_state, getattr(cold, player).opt_state)
        assert int(warm.step) == 0
        assert warm.key == cold.key
    cold, warm, said = started(configured(init_from=location, init_players="classifier"))
    assert said.endswith("the classifier")
    assert are_equal(networks_of(warm.classifier), saved["classifier"])
    assert are_equal(warm.adversary, cold.adversary)


def test_averages_start_from_the_loaded_weights(tiny_run):
    config = configured("none", classifier=ClassifierConfig(ema_decay=0.5), init_from=str(tiny_run))
    _, warm, _ = started(config)
    assert are_equal(tuple(warm.average), tuple(warm.classifier.variables))


def test_the_head_is_replaced_where_the_number_of_classes_differs(tiny_run):
    cold, warm, said = started(configured("none", init_from=str(tiny_run)), num_classes=3)
    saved = checkpoint.get_variables(checkpoint.read_record(tiny_run))["classifier"]["params"]
    same = {name for name in saved if are_equal(warm.classifier.params[name], saved[name])}
    anew = set(saved) - same
    assert len(anew) == 1
    assert are_equal([warm.classifier.params[name] for name in anew], [cold.classifier.params[name] for name in anew])
    (name,) = anew
    assert said.endswith(f"classifier/params/{name}/kernel start anew, for 3 classes instead of 10"), said


def test_a_generator_is_kept_at_random_where_the_source_has_none():
    _, warm, said = started(configured(init_from="zoo:digits/pgd"))
    assert said.endswith("of zoo:digits/pgd: the classifier (its run has no generator)")
    assert are_equal(warm.classifier.params, checkpoint.load_classifier("zoo:digits/pgd").args[0])


def train(config, directory, log_fn=lambda text: None):
    devices = parallel.find_devices(num_devices=1)
    return training.train(config, directory, devices=devices, progress=False, log_fn=log_fn)


@pytest.mark.slow
def test_a_resumed_warm_start_is_exact_and_needs_the_source_no_more(tiny_run, tmp_path):
    source = shutil.copytree(tiny_run, tmp_path / "source")
    said = []
    config = configured("none", init_from=str(source), num_steps=4)
    whole = train(config, tmp_path / "whole", said.append)
    assert said[0] == f"starts from step {checkpoint.read_record(source).step} of {source}: the classifier"
    config.num_steps = 2
    train(config, tmp_path / "parts")
    shutil.rmtree(source)
    config.num_steps = 4
    parts = train(config, tmp_path / "parts", said.append)
    assert said[-1] == f"resuming from step 2 of {tmp_path / 'parts'}"
    assert are_equal(whole.state, parts.state)
    cold = train(configured("none", num_steps=4), tmp_path / "cold")
    assert not are_equal(whole.state.classifier.params, cold.state.classifier.params)
    with pytest.raises(UserError, match=r"another configuration \(there != here: init_from: "):
        train(configured("none", num_steps=4), tmp_path / "whole")


def test_other_architectures_and_missing_sources_are_one_sentence_and_nothing_is_written(tiny_run, tmp_path):
    other = configured("none", init_from=str(tiny_run), classifier=ClassifierConfig(network="mnist_cnn"))
    with pytest.raises(
        UserError, match="of another architecture: its classifier is 'digits_cnn', and 'mnist_cnn' here"
    ):
        train(other, tmp_path / "new")
    generator = configured(init_from=str(tiny_run))
    generator.adversary.generator.inputs = ("gradient",)
    with pytest.raises(UserError, match=r"another generator: adversary.generator.inputs is \(\) there, and \('gradi"):
        train(generator, tmp_path / "new")
    with pytest.raises(CheckpointError, match="there is no folder"):
        train(configured("none", init_from=str(tmp_path / "nosuch")), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="init_players must be one of both, classifier, not 'all'"):
        train(configured(init_players="all"), tmp_path / "new")


def test_arrays_of_other_shapes_are_one_sentence(tiny_run, monkeypatch):
    found = checkpoint.get_variables(checkpoint.read_record(tiny_run))
    name = next(name for name, layer in found["classifier"]["params"].items() if "kernel" in layer)
    found["classifier"]["params"][name]["kernel"] = np.zeros((2, 2), np.float32)
    monkeypatch.setattr(checkpoint, "get_variables", lambda record: found)
    with pytest.raises(
        UserError, match=rf"architecture: classifier/params/{name}/kernel has \[2, 2\], and is of shape"
    ):
        started(configured("none", init_from=str(tiny_run)))
    del found["classifier"]["params"][name]
    with pytest.raises(UserError, match=rf"architecture: classifier/params/{name}/\w+ is not there"):
        started(configured("none", init_from=str(tiny_run)))


def test_the_flag_of_the_command_sets_the_field(launch, tmp_path):
    ended = launch("train", "--config=configs/digits.py:pgd", "--init_from=zoo:digits/pgd", "--print_config")
    assert '"init_from": "zoo:digits/pgd"' in ended.out
    missing = launch("train", "--config=configs/digits.py", "--init_from=zoo:nosuch", f"--workdir={tmp_path / 'new'}")
    assert missing.err.startswith("error: there is no model 'nosuch' in the zoo: the models are ")
    assert not (tmp_path / "new").exists()
