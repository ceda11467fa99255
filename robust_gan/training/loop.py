"""The host loop: data in, steps dispatched, metrics and checkpoints out. No flags, no arithmetic of the game."""

import contextlib
import functools
import importlib.util
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tqdm

from robust_gan import checkpoint, data, parallel
from robust_gan.config import Config, to_dict, validate
from robust_gan.errors import UserError
from robust_gan.game import TrainState
from robust_gan.parallel import interruption
from robust_gan.storage import workdir
from robust_gan.training import diagnostics, evaluator, multi_step, nonfinite, postmortem, setup, writers
from robust_gan.version import __version__

_QUIET = 10.0
"""Seconds between two plain lines of metrics."""


class Result(NamedTuple):
    """How a run ended.

    Attributes:
        state: The last state, on the host.
        step: Steps taken.
        finished: False where a signal ended it early; True after all steps, or out of patience.
        validation: The figures of the last validation.
        best_step: Steps of the best checkpoint; None where none was saved.
    """

    state: TrainState
    step: int
    finished: bool
    validation: dict[str, float]
    best_step: int | None


def train(
    config: Config,
    directory: str | os.PathLike,
    *,
    devices: Sequence[jax.Device] | None = None,
    progress: bool | None = None,
    tensorboard: bool = False,
    on_nan: str = "stop",
    say: Callable[[str], Any] = print,
) -> Result:
    """Trains, or goes on training, until `config.num_steps`.

    Writes to the folder: `config.json`; `metrics.jsonl`, a line every `log_every` steps with the metrics of that step
    and one for each validation; `timing.jsonl`; `noise/`, small pictures of the generator's on fixed images; and
    `checkpoints/`, the newest and the best. The best is the one of the highest validation robust accuracy under PGD
    (for adversary `none`, where that is near 0 throughout, of the highest clean accuracy). SIGTERM and Ctrl-C finish
    the step, save and return; a second signal leaves at once.

    Args:
        config: The run.
        directory: Its folder; one that holds a stopped run of the same configuration is continued.
        devices: Where; None for all of the best platform.
        progress: A bar with rate and remaining time; None for only where stderr is a terminal, and elsewhere a line at
            each validation, and of metrics at most every `_QUIET` seconds.
        tensorboard: Write scalars for TensorBoard too (needs the extra `tensorboard`).
        on_nan: What becomes of the run at a step where a loss or a gradient of a player is NaN or infinite, which is
            never taken: `stop` ends it by the next line of metrics, with the state before that step kept in
            `not_finite/`; `skip` goes on without it, counts it in `train/skipped_steps`, and ends only after
            `postmortem.MOST_IN_A_ROW` in a row.
        say: Called with a sentence where there is something to say.

    Returns:
        How the run ended.

    Raises:
        UserError: The configuration, the data or the folder cannot be right; nothing is written then.
        NotFiniteError: A loss or a gradient became NaN or infinite.

    Guarantees:
        `test_stopped_and_resumed_equals_undisturbed`, `test_no_state_that_is_not_finite_is_ever_saved`.
    """
    validate(config)
    if on_nan not in nonfinite.POLICIES:
        raise UserError(f"on_nan must be one of {', '.join(nonfinite.POLICIES)}, not {on_nan!r}")
    devices = parallel.find_devices() if devices is None else devices
    parallel.check_batch_size(config.batch_size, devices)
    if tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise UserError("--tensorboard needs tensorboardX: pip install 'robust_gan[tensorboard]'")
    versions = {"robust_gan": __version__, "jax": jax.__version__}
    parallel.assert_equal_across_processes({"config": to_dict(config), "on_nan": on_nan, "versions": versions})
    first = parallel.is_primary()
    say = say if first else _say_nothing

    def read() -> data.Dataset:
        if first:
            workdir.check(directory, config)  # Before the data, which take long to decode.
        setup.check_networks(config)
        return setup.load_data(config)

    dataset = parallel.run_on_all_processes(read)
    parallel.assert_equal_across_processes({"data": setup.fingerprint(dataset)})
    info, game, state = setup.build(config, dataset)

    with contextlib.ExitStack() as stack:
        recorder = writers.RunWriter(stack, directory, config, info, say)
        folder = recorder.folder
        state, start = recorder.restore(state, tensorboard=tensorboard)
        stopped = stack.enter_context(interruption.signals())
        agreement = parallel.StopConsensus(devices)
        lines = _Lines(config.num_steps, first and progress is None and not sys.stderr.isatty())
        progress = first and (sys.stderr.isatty() if progress is None else progress)
        bar = stack.enter_context(
            tqdm.tqdm(total=config.num_steps, initial=min(start, config.num_steps), unit="step", disable=not progress)
        )

        arrays = {"images": dataset.train.images, "labels": dataset.train.labels}
        teller = diagnostics.LogOnce(say)
        sentry = postmortem.NonFiniteMonitor(folder, config, info, on_nan, recorder.skipped, say)
        carried = multi_step.LoopState(state, nonfinite.begin(recorder.skipped))
        carried, arrays = parallel.replicate((carried, arrays), devices)
        play = parallel.map_step(functools.partial(multi_step.run_steps, game, config, on_nan), devices)
        most = multi_step.steps_per_call(config, devices[0].platform)
        figures: dict[str, float] = {}
        # Metrics are fetched when the next steps are under way, so that the device does not wait for the host.
        pending: list[tuple[int, multi_step.StepOutput]] = []
        began, began_step, step = time.perf_counter(), start, start

        def settle() -> None:
            nonlocal began, began_step
            for at, measured in pending:
                scalars, watch = jax.device_get(measured)
                sentry.check(watch, carried.state)
                found = {f"train/{name}": float(value) for name, value in (scalars | sentry.counts).items()}
                values = {name: value for name, value in found.items() if math.isfinite(value)}  # JSON has no others.
                recorder.record(at, values)
                seconds = time.perf_counter() - began
                rate = (at - began_step) * config.batch_size / seconds
                recorder.time(at, {"seconds": round(seconds, 3), "images_per_second": round(rate, 1)})
                began, began_step = time.perf_counter(), at
                bar.set_postfix_str(_postfix(values | figures))
                lines.write(at, values)
            pending.clear()

        def save(values: dict[str, float]) -> None:
            sentry.check_state(carried.state)
            recorder.save(step, carried.state, values, skipped=sentry.skipped)

        def is_over() -> bool:
            return step >= config.num_steps or _is_out_of_patience(config, step, recorder.best_step)

        while not is_over() and not agreement.reached(bool(stopped)):
            count = min(most, _steps_until(step, config.num_steps, config.log_every, config.validation.every))
            orders = multi_step.orders(config, step, count, most, len(dataset.train.labels), devices)
            if all(leaf.is_ready() for leaf in jax.tree.leaves(pending) if isinstance(leaf, jax.Array)):  # type: ignore[attr-defined]  # Its stub lacks it.
                # A call with a loop blocks on a GPU: settled after it, the last one's seconds would be this one's.
                settle()
            carried, measured = play(carried, arrays, orders)
            step += count
            settle()
            bar.update(count)
            if step % config.log_every == 0 or step == config.num_steps:
                pending.append((step, measured))
            if step % config.validation.every == 0 or step == config.num_steps:
                settle()
                sentry.check(jax.device_get(carried.watch), carried.state)
                scores = evaluator.score(config, dataset, carried.state, info, devices)
                figures = evaluator.figures(scores)
                health = diagnostics.measure(config, dataset, carried.state, info)
                signs = diagnostics.warnings(figures, health, config, scores.clean.shape[-1], recorder.best_value)
                recorder.record(step, figures | health | teller.tell(step, signs))
                recorder.draw(step, *evaluator.noise(config, scores))
                save(figures | {checkpoint.SELECTION: evaluator.selection(config, figures)})
                bar.set_postfix_str(_postfix(figures))
                lines.write(step, figures, at_once=True)
                began, began_step = time.perf_counter(), step
        settle()
        if start >= config.num_steps:
            say(f"{folder} stands at step {start} of {config.num_steps}: nothing is left to do")
        ended = is_over()
        if ended and step < config.num_steps:
            say(f"ended at step {step}: no validation since step {recorder.best_step} was as good")
        if not ended:
            # Saved without a validation: selecting it as the best would mean choosing blindly.
            sentry.check(jax.device_get(carried.watch), carried.state)
            save({checkpoint.SELECTION: -1.0})
            say(f"stopped at step {step} and saved; the same command goes on from there")
        return Result(jax.device_get(_without_keys(carried.state)), step, ended, figures, recorder.best_step)


class _Lines:
    """Plain lines on stderr, for who reads a file in place of a terminal."""

    def __init__(self, num_steps: int, wanted: bool) -> None:
        """Has written nothing yet."""
        self._num_steps, self._wanted, self._written = num_steps, wanted, time.monotonic()

    def write(self, step: int, values: dict[str, float], *, at_once: bool = False) -> None:
        """Writes a line, unless the last one is only just written."""
        if self._wanted and (at_once or time.monotonic() - self._written >= _QUIET):
            self._written = time.monotonic()
            print(f"step {step} of {self._num_steps}: {_postfix(values)}", file=sys.stderr, flush=True)


def _steps_until(step: int, end: int, *multiples: int) -> int:
    """Returns how many steps there are to the next at which the host has something to do."""
    return min(end - step, *(every - step % every for every in multiples))


def _is_out_of_patience(config: Config, step: int, best: int | None) -> bool:
    patience = config.validation.patience * config.validation.every
    return bool(patience) and best is not None and step - best >= patience


def _postfix(values: dict[str, float]) -> str:
    shown = ("train/clean_loss", "train/adversarial_loss", "validation/clean_accuracy")
    pgd = [name for name in values if name.startswith("validation/pgd")]
    return " ".join(f"{name.split('/')[-1]} {values[name]:.3f}" for name in (*shown, *pgd) if name in values)


def _without_keys(state: TrainState) -> TrainState:
    """Typed keys have no form on the host; their data have."""
    return jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf, state
    )


def _say_nothing(sentence: str) -> None:
    """What all processes but the first say."""
