"""The training loop on the host: dispatches compiled steps; writes metrics, validations and checkpoints."""

import contextlib
import functools
import importlib.util
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robust_gan import checkpoint, data, parallel
from robust_gan.config import Config, to_dict, validate
from robust_gan.errors import UserError
from robust_gan.game import TrainState
from robust_gan.parallel import interruption
from robust_gan.reporting.progress import Progress
from robust_gan.storage import workdir
from robust_gan.training import diagnostics, evaluator, multi_step, nonfinite, setup, warm_start, writers
from robust_gan.version import __version__


class Result(NamedTuple):
    """The result of a run.

    Attributes:
        state: The last state, on the host.
        step: Steps taken.
        finished: False if a signal stopped the run; True after all steps, or when validation ran out of patience.
        validation: The metrics of the last validation.
        best_step: The step of the best checkpoint; None if none was saved.
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
    platform: str = "",
    progress: bool | None = None,
    tensorboard: bool = False,
    metric_writers: Sequence[writers.MetricWriter] = (),
    on_nan: str = "stop",
    log_fn: Callable[[str], Any] | None = print,
) -> Result:
    """Trains until `config.num_steps`, or resumes a stopped run.

    Writes to the workdir: `config.json`; `metrics.jsonl`, a line every `log_every` steps with the metrics of that step
    and one for each validation; `timing.jsonl`; `noise/`, small images of the generator's noise; and `checkpoints/`,
    the newest and the best. The best has the highest validation accuracy under PGD (for the adversary `none`, where it
    stays near 0, the highest clean accuracy). SIGTERM and Ctrl-C finish the step, save and return; a second signal
    ends the process at once.

    Args:
        config: The run.
        directory: Its workdir; a stopped run of the same configuration in it is resumed.
        devices: The devices; None for all of a platform, but of a CPU's cores those that `setup.keep_busy` chooses.
        platform: `cpu`, `gpu` or `tpu` where devices is None; empty for the best available.
        progress: Whether to show a progress bar; None shows it if stderr is a terminal, and if stdout is none prints a
            line there at each validation, and otherwise at most every 30 seconds.
        tensorboard: Write for TensorBoard too (needs the extra `tensorboard`).
        metric_writers: Receive the lines of `metrics.jsonl` too, in the primary process; closed at the end of the run.
        on_nan: The policy for a step at which a loss or a gradient is NaN or infinite, which is always discarded:
            `stop` ends the run by the next line of metrics and saves the state before that step in `not_finite/`;
            `skip` continues, counts it in `train/skipped_steps`, and ends the run only after
            `nonfinite.MAX_CONSECUTIVE` in a row.
        log_fn: Called with a sentence. None: nothing is said, and no test images are searched among those of training.

    Returns:
        The result.

    Raises:
        UserError: The configuration, the data or the workdir is invalid; nothing is written then.
        NotFiniteError: A loss or a gradient became NaN or infinite.

    Guarantees:
        `test_stopped_and_resumed_equals_undisturbed`, `test_no_state_that_is_not_finite_is_ever_saved`.
    """
    validate(config)
    if on_nan not in nonfinite.POLICIES:
        raise UserError(f"on_nan must be one of {', '.join(nonfinite.POLICIES)}, not {on_nan!r}")
    setup.check(config, devices)
    if tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise UserError("--tensorboard needs tensorboardX: pip install 'robust_gan[tensorboard]'")
    versions = {"robust_gan": __version__, "jax": jax.__version__}
    parallel.assert_equal_across_processes({"config": to_dict(config), "on_nan": on_nan, "versions": versions})
    searches = log_fn is not None and parallel.is_primary()
    log_fn = log_fn if log_fn is not None and parallel.is_primary() else _ignore
    # Before the data, which take long to decode.
    parallel.run_on_all_processes(lambda: workdir.check(directory, config) if parallel.is_primary() else None)
    start = setup.build(config, devices, platform)
    # A resumed run has checkpoints of its own; all images are read to find an overlap.
    is_new = not parallel.broadcast_from_primary(lambda: checkpoint.has_steps(directory))
    overlap = parallel.run_on_all_processes(lambda: data.find_overlap(start.dataset) if is_new and searches else ())
    for note in (*start.dataset.notes, *overlap):
        log_fn(note)
    if config.init_from and is_new:
        state, said = parallel.run_on_all_processes(lambda: warm_start.load(config, start.info, start.state))
        start = start._replace(state=state)
        log_fn(said)
    with contextlib.ExitStack() as stack:
        writer = writers.RunWriter(stack, directory, start, log_fn, metric_writers)
        return _Loop(stack, start, writer, on_nan, log_fn, progress, tensorboard).run()


class _Loop:
    """The state of `train` between two calls of the compiled steps."""

    def __init__(
        self, stack: contextlib.ExitStack, start: setup.Setup, writer: writers.RunWriter, on_nan: str,
        log_fn: Callable[[str], Any], progress: bool | None, tensorboard: bool,
    ) -> None:  # fmt: skip
        self._config, self._devices, self._writer, self._log_fn = start.config, start.devices, writer, log_fn
        state, self._start = writer.restore(start.state, tensorboard=tensorboard)
        self._stopped = stack.enter_context(interruption.signals())
        self._consensus = parallel.StopConsensus(start.devices)
        self._progress = stack.enter_context(
            Progress(start.config.num_steps, unit="step", done=self._start, show=progress)
        )
        self._log_once = diagnostics.LogOnce(log_fn)
        self._monitor = nonfinite.NonFiniteMonitor(
            writer.folder, start.config, start.info, on_nan, writer.skipped, log_fn
        )
        loop_state = multi_step.LoopState(state, nonfinite.init_state(writer.skipped))
        self._loop_state, self._arrays = parallel.replicate((loop_state, start.arrays), start.devices)
        self._run_steps = parallel.map_step(
            functools.partial(multi_step.run_steps, start.game, start.config, on_nan), start.devices
        )
        self._max_steps = multi_step.steps_per_call(start.config, start.devices[0].platform, start.streamed)
        self._num_images, self._streamed = len(start.dataset.train.labels), start.streamed
        self._evaluator = evaluator.Evaluator(start)
        self._metrics: dict[str, float] = {}
        # Metrics are fetched after the next steps are dispatched, so that the device does not wait for the host.
        self._pending: list[tuple[int, multi_step.StepOutput]] = []
        self._step = self._timed_step = self._start
        self._timed = time.perf_counter()

    def run(self) -> Result:
        """Runs the remaining steps."""
        config, writer = self._config, self._writer
        while not self._is_over() and not self._consensus.reached(bool(self._stopped)):
            self._run_call()
            if self._is_due(config.validation.every):
                self._validate()
        self._flush()
        if self._start >= config.num_steps:
            self._log_fn(f"{writer.folder} is at step {self._start} of {config.num_steps}: nothing is left to do")
        finished = self._is_over()
        if finished and self._step < config.num_steps:
            self._log_fn(f"ended at step {self._step}: no improvement since step {writer.best_step}")
        if not finished:
            # Saved without a validation, so it must not be selected as the best.
            self._save({checkpoint.SELECTION: -1.0})
            self._log_fn(f"stopped at step {self._step} and saved a checkpoint; rerun the same command to resume")
        state = jax.device_get(_without_keys(self._loop_state.train_state))
        return Result(state, self._step, finished, self._metrics, writer.best_step)

    def _run_call(self) -> None:
        config, step = self._config, self._step
        limits = [every - step % every for every in (config.log_every, config.validation.every)]
        num_steps = min(self._max_steps, config.num_steps - step, *limits)
        indices = multi_step.batch_indices(
            config, step, num_steps, self._max_steps, self._num_images, self._devices, self._streamed
        )
        if all(leaf.is_ready() for leaf in jax.tree.leaves(self._pending) if isinstance(leaf, jax.Array)):  # type: ignore[attr-defined]  # Its stub lacks it.
            # A call with a loop blocks on a GPU: if flushed after it, its time would count for the previous line.
            self._flush()
        self._loop_state, output = self._run_steps(self._loop_state, self._arrays, indices)
        self._step += num_steps
        self._flush()
        self._progress.update(num_steps)
        if self._is_due(config.log_every):
            self._pending.append((self._step, output))
        elif self._progress.is_due():
            metrics = jax.device_get(output.metrics)
            self._show({f"train/{name}": float(value) for name, value in metrics.items()} | self._metrics)

    def _flush(self) -> None:
        """Writes the metrics of the last call."""
        for step, output in self._pending:
            metrics, counts = jax.device_get(output)
            self._monitor.check(counts, self._loop_state.train_state)
            values = {f"train/{name}": float(value) for name, value in (metrics | self._monitor.metrics).items()}
            values = {name: value for name, value in values.items() if math.isfinite(value)}  # JSON has no NaN.
            self._writer.write_metrics(step, values)
            seconds = time.perf_counter() - self._timed
            rate = (step - self._timed_step) * self._config.batch_size / seconds
            self._writer.write_timing(step, {"seconds": round(seconds, 3), "images_per_second": round(rate, 1)})
            self._timed, self._timed_step = time.perf_counter(), step
            self._show(values | self._metrics)
        self._pending.clear()

    def _validate(self) -> None:
        self._flush()
        self._check_counts()
        validation = self._evaluator.evaluate(self._loop_state.train_state, self._writer.best_value)
        self._metrics = metrics = validation.metrics
        warnings = self._log_once(self._step, validation.warnings)
        self._writer.write_metrics(self._step, metrics | validation.health | warnings)
        self._writer.write_noise(self._step, validation.images, validation.noise)
        self._save(metrics | {checkpoint.SELECTION: evaluator.get_selection_metric(self._config, metrics)})
        self._show(metrics, at_once=True)
        self._timed, self._timed_step = time.perf_counter(), self._step

    def _save(self, metrics: dict[str, float]) -> None:
        self._check_counts()
        state = self._loop_state.train_state
        self._monitor.check_state(state)
        self._writer.save(self._step, state, metrics, skipped=self._monitor.skipped)

    def _check_counts(self) -> None:
        self._monitor.check(jax.device_get(self._loop_state.nonfinite), self._loop_state.train_state)

    def _is_due(self, every: int) -> bool:
        return self._step % every == 0 or self._step == self._config.num_steps

    def _is_over(self) -> bool:
        """Returns whether all steps are taken, or validation has not improved for `validation.patience` times."""
        patience, best = self._config.validation.patience * self._config.validation.every, self._writer.best_step
        return self._step >= self._config.num_steps or bool(
            patience and best is not None and self._step - best >= patience
        )

    def _show(self, values: dict[str, float], *, at_once: bool = False) -> None:
        self._progress.describe(_format(values), at_once=at_once)


def _format(values: dict[str, float]) -> str:
    shown = ("train/clean_loss", "train/adversarial_loss", "validation/clean_accuracy")
    pgd = [name for name in values if name.startswith("validation/pgd")]
    return ", ".join(f"{name.split('/')[-1]} {values[name]:.3f}" for name in (*shown, *pgd) if name in values)


def _without_keys(state: TrainState) -> TrainState:
    """Returns a state with the data of its typed keys, which have no form on the host."""
    return jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf, state
    )


def _ignore(sentence: str) -> None:
    """Logs nothing, in all processes but the primary one."""
