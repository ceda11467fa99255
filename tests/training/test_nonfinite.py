"""Numbers gone wrong: found at their step, named, not taken, kept for a look at them; or skipped and counted."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_config

from robust_gan import checkpoint, parallel, training
from robust_gan import game as game_lib
from robust_gan.checkpoint import manager
from robust_gan.config import AdversaryConfig, DataConfig, GeneratorConfig
from robust_gan.errors import NotFiniteError, UserError
from robust_gan.game import TrainState, Variables
from robust_gan.storage import leaves, workdir
from robust_gan.training import nonfinite
from robust_gan.types import PlayerState

NAMES = [name for name, _ in nonfinite.CHECKED]
AT = 5
"""Steps taken before the one that goes wrong; no line of metrics and no validation is there."""


def player(value):
    return PlayerState({"kernel": jnp.full(3, value)}, {"mean": jnp.full(2, value)}, (jnp.full(3, value),))


def state(value, step):
    average = Variables({"kernel": jnp.full(3, value)}, {})
    return TrainState(jnp.int32(step), jax.random.key(0), player(value), player(value), average)


def same(left, right):
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.array_equal(leaves.to_host(a), leaves.to_host(b)) for a, b in pairs)


@jax.jit
def stops(before, after, metrics, counts):
    return nonfinite.select(before, after, metrics, counts, policy="stop")


@jax.jit
def skips(before, after, metrics, counts):
    return nonfinite.select(before, after, metrics, counts, policy="skip")


def measured(name=None, value=1.0):
    return {watched: jnp.float32(value if watched == name else 1.0) for watched in NAMES}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_is_not_finite_is_not_taken(name, value):
    before, after, metrics = state(1.0, AT), state(2.0, AT + 1), measured(name, value)
    kept, counts = stops(before, after, metrics, nonfinite.init_state())
    assert same(kept, before)
    found = nonfinite.get_report(jax.device_get(counts))
    assert (found.name, found.player, found.step) == (name, dict(nonfinite.CHECKED)[name], AT + 1)
    assert not np.isfinite(found.value)
    # Held from there on, though the next steps were finite.
    kept, counts = stops(kept, state(3.0, AT + 1), measured(), counts)
    assert same(kept, before)
    assert (int(counts.skipped), int(counts.step)) == (1, AT)
    # Or left out, and counted.
    kept, counts = skips(before, after, metrics, nonfinite.init_state(skipped=2))
    assert same(kept, before._replace(step=jnp.int32(AT + 1)))
    assert (int(counts.skipped), int(counts.consecutive), int(counts.step)) == (3, 1, AT)
    kept, counts = skips(kept, state(3.0, AT + 2), measured(), counts)
    assert same(kept, state(3.0, AT + 2))
    assert (int(counts.skipped), int(counts.consecutive), int(counts.step)) == (3, 0, AT)


def test_a_finite_step_is_taken_and_an_adversary_that_does_not_learn_is_not_watched():
    before, after = state(1.0, AT)._replace(adversary=()), state(2.0, AT + 1)._replace(adversary=())
    for guard in (stops, skips):
        kept, counts = guard(before, after, {"classifier_loss": jnp.float32(1)}, nonfinite.init_state())
        assert same(kept, after)
        assert nonfinite.get_report(jax.device_get(counts)) is None


def test_the_player_that_broke_first_is_named():
    nan = jnp.float32(np.nan)
    # A broken generator breaks the classifier's loss; a broken classifier every loss, the clean one too.
    for names, player_named in ((NAMES[1:], "generator"), (NAMES, "classifier")):
        metrics = measured() | dict.fromkeys(names, nan)
        counts = stops(state(1.0, AT), state(1.0, AT + 1), metrics, nonfinite.init_state())[1]
        assert nonfinite.get_report(jax.device_get(counts)).player == player_named


def tiny(**settings):
    fields = {
        "data": DataConfig(train_size=64, validation_size=16),
        "adversary": AdversaryConfig(generator=GeneratorConfig(network="tiny", steps=1)),
    }
    return tiny_config.make(**{**fields, "batch_size": 8, "num_steps": 9, "log_every": 4, **settings})


def train(config, directory, **settings):
    devices = parallel.find_devices(num_devices=1)
    return training.train(config, directory, devices=devices, progress=False, **{"log_fn": lambda _: None, **settings})


def lines(directory):
    return [json.loads(line) for line in (pathlib.Path(directory) / workdir.METRICS).read_text().splitlines()]


POISONS = {
    "images": (lambda state, batch: (state, batch._replace(images=batch.images * jnp.nan)), "classifier"),
    "the generator": (lambda state, batch: (state._replace(adversary=_infinite(state.adversary)), batch), "generator"),
}


def _infinite(player):
    return player._replace(params=jax.tree.map(lambda leaf: leaf / 0.0, player.params))


def poison(monkeypatch, name, steps):
    """Lets something go wrong in some steps of every run."""
    change, step = POISONS[name][0], game_lib.train_step

    def poisoned(game, state, batch, **settings):
        wrong = jnp.isin(state.step, jnp.array(steps))
        changed = jax.tree.map(lambda a, b: jnp.where(wrong, a, b), change(state._replace(key=None), batch),
                               (state._replace(key=None), batch))  # fmt: skip
        return step(game, changed[0]._replace(key=state.key), changed[1], **settings)

    monkeypatch.setattr(game_lib, "train_step", poisoned)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_names")
@pytest.mark.parametrize("name", ["images", "the generator"])
def test_no_state_that_is_not_finite_is_ever_saved(tmp_path, monkeypatch, name):
    sound = train(tiny(num_steps=AT), tmp_path / "sound")
    poison(monkeypatch, name, [AT])
    with pytest.raises(NotFiniteError, match=rf"_loss of the {POISONS[name][1]} is (nan|-?inf) at step {AT + 1}: "):
        train(tiny(), tmp_path / "run")
    kept = checkpoint.read_record(tmp_path / "run" / nonfinite.FOLDER)
    assert kept.step == AT
    like = sound.state._replace(key=jax.random.key(0))
    state = manager.fill(like, kept)
    assert same(state, like._replace(key=state.key))
    found = json.loads((tmp_path / "run" / nonfinite.FOLDER / "nonfinite.json").read_text())
    assert (found["player"], found["step"]) == (POISONS[name][1], AT + 1)
    # The checkpoints of before are there, no line of the metrics is of after, and what was kept loads.
    assert checkpoint.read_record(tmp_path / "run", "last").step == 3
    assert [line["step"] for line in lines(tmp_path / "run")] == [3, 4]
    # The same command ends in the same way.
    with pytest.raises(NotFiniteError, match=f"at step {AT + 1}"):
        train(tiny(), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_names")
def test_skipped_steps_are_counted_also_over_a_resume(tmp_path, monkeypatch):
    poison(monkeypatch, "the generator", [2, AT, 7])
    said = []
    whole = train(tiny(steps_per_call=4), tmp_path / "whole", on_nan="skip", log_fn=said.append)
    assert whole.step == 9
    assert [text for text in said if "skipped" in text] == [
        f"steps skipped: 1; the last was step {step}, where generator_loss of the generator was nan"
        for step in (3, 6, 8)
    ]
    counted = "train/skipped_steps"
    counts = [(line["step"], line[counted]) for line in lines(tmp_path / "whole") if counted in line]
    assert counts == [(4, 1), (8, 3), (9, 3)]
    train(tiny(num_steps=6, steps_per_call=4), tmp_path / "parts", on_nan="skip")
    parts = train(tiny(steps_per_call=4), tmp_path / "parts", on_nan="skip")
    assert same(parts.state, whole.state)
    assert [line for line in lines(tmp_path / "parts") if line["step"] != 6] == [
        line for line in lines(tmp_path / "whole") if line["step"] != 6
    ]
    # A line that was skipped itself holds what is finite.
    at_8 = next(line for line in lines(tmp_path / "whole") if line["step"] == 8)
    assert "train/generator_loss" not in at_8
    assert np.isfinite(list(at_8.values())).all()


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_names")
def test_a_run_that_skips_every_step_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(nonfinite, "MAX_CONSECUTIVE", 4)
    poison(monkeypatch, "images", list(range(3, 9)))
    with pytest.raises(NotFiniteError, match=r"at step 8, the last of 5 steps in a row"):
        train(tiny(), tmp_path / "run", on_nan="skip")
    assert checkpoint.read_record(tmp_path / "run", "last").step == 6


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_names")
def test_a_state_that_overflows_in_its_last_step_is_not_saved(tmp_path, monkeypatch):
    step = game_lib.train_step

    def overflows(*arguments, **settings):
        state, metrics = step(*arguments, **settings)
        return state._replace(classifier=_infinite(state.classifier)), metrics

    monkeypatch.setattr(game_lib, "train_step", overflows)
    with pytest.raises(NotFiniteError, match=r"classifier/params/\S+ of the classifier is -?(inf|nan) at step 1: "):
        train(tiny(num_steps=1), tmp_path / "run")
    assert not list((tmp_path / "run" / checkpoint.FOLDER).iterdir())


@pytest.mark.usefixtures("tiny_names")
def test_a_report_is_raised_even_where_the_state_cannot_be_saved(tmp_path, monkeypatch):
    poison(monkeypatch, "images", [1])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / nonfinite.FOLDER).write_text("in the way")
    with pytest.raises(NotFiniteError, match="at step 2") as caught:
        train(tiny(), tmp_path / "run")
    assert "could not be saved" in caught.value.__notes__[0]


def test_a_policy_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(UserError, match="on_nan must be one of stop, skip, not 'ignore'"):
        train(tiny(), tmp_path / "run", on_nan="ignore")


def test_the_policies_of_the_flag_are_those_of_the_library():
    launcher = (pathlib.Path(__file__).resolve().parents[2] / "robust_gan" / "cli" / "train.py").read_text()
    assert f'["{nonfinite.POLICIES[0]}", "{nonfinite.POLICIES[1]}"]' in launcher
