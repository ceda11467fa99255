"""NaN and infinity in training: the compiled step discards such an update; the host counts it or ends the run.

The losses of both players and the norms of their gradients are checked at every step. These sums keep NaN and
infinity, which `jnp.max` over a large array loses on a CPU (jaxlib 0.10). A finite gradient may still make an array of
the state overflow: the next step detects it, and `find_nonfinite` does before a checkpoint is saved.
"""

import contextlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from robust_gan import checkpoint, parallel
from robust_gan.config import Config
from robust_gan.errors import NotFiniteError
from robust_gan.game.state import TrainState
from robust_gan.storage import leaves, workdir
from robust_gan.types import Metrics

POLICIES = ("stop", "skip")
"""A step that is not finite ends the run, or is skipped and counted."""

CHECKED = (
    ("clean_loss", "classifier"),
    ("generator_loss", "generator"),
    ("generator_gradient_norm", "generator"),
    ("classifier_loss", "classifier"),
    ("classifier_gradient_norm", "classifier"),
)
"""The metrics checked and their players. The first that is not finite names the cause: a diverged classifier makes the
generator's loss NaN too, but the clean loss does not depend on the generator."""

FOLDER = "not_finite"
"""Subfolder of the workdir, itself a workdir, so that it can be evaluated: `--checkpoint=WORKDIR/not_finite`."""

MAX_CONSECUTIVE = 50
"""A run ends after this many skipped steps in a row."""


class NonFiniteState(NamedTuple):
    """Counts of discarded steps, updated inside the compiled step.

    Attributes:
        skipped: int32 `[]`, number of discarded steps.
        consecutive: int32 `[]`, number of discarded steps since the last one that was taken.
        step: int32 `[]`, steps taken before the latest discarded one; -1 if there is none.
        values: float32 `[5]`, the metrics of that step in the order of `CHECKED`; 0 for absent metrics.
    """

    skipped: jax.Array | np.ndarray | np.int32
    consecutive: jax.Array | np.ndarray | np.int32
    step: jax.Array | np.ndarray | np.int32
    values: jax.Array | np.ndarray


class NonFiniteReport(NamedTuple):
    """The metric or array that is not finite.

    Attributes:
        name: One of `CHECKED`, or the path of an array of the state.
        player: `classifier` or `generator`.
        value: NaN or an infinity.
        step: The step, counted as in the metrics: the first is 1.
    """

    name: str
    player: str
    value: float
    step: int


def init_state(skipped: int = 0) -> NonFiniteState:
    """Returns the state of a run that has discarded `skipped` steps so far.

    >>> int(init_state(3).skipped), int(init_state().step)
    (3, -1)
    """
    return NonFiniteState(np.int32(skipped), np.int32(0), np.int32(-1), np.zeros(len(CHECKED), np.float32))


def select(
    before: TrainState, after: TrainState, metrics: Metrics, nonfinite: NonFiniteState, *, policy: str
) -> tuple[TrainState, NonFiniteState]:
    """Returns the new state if the step is finite, else the old one.

    Args:
        before: The state before the step.
        after: The state after the step.
        metrics: The metrics of the step.
        nonfinite: The counts before.
        policy: `stop`: the state, its step count included, no longer changes after the first such step; `skip`: the
            step count advances, so that the next step uses other images.

    Returns:
        The state and the counts.

    >>> from robust_gan.types import PlayerState
    >>> empty = TrainState(jnp.int32(3), jax.random.key(0), PlayerState({}, {}, ()), ())
    >>> metrics = {"clean_loss": jnp.array(0.5), "classifier_loss": jnp.array(jnp.nan)}
    >>> state, counts = select(empty, empty._replace(step=jnp.int32(4)), metrics, init_state(), policy="stop")
    >>> int(state.step), int(counts.step), get_report(counts).name
    (3, 3, 'classifier_loss')
    """
    values = jnp.stack([jnp.asarray(metrics.get(name, 0.0), jnp.float32) for name, _ in CHECKED])
    finite, running = jnp.isfinite(values).all(), (nonfinite.step < 0) | (policy == "skip")
    taken, discarded = finite & running, ~finite & running
    nonfinite = NonFiniteState(
        nonfinite.skipped + discarded,
        jnp.where(taken, 0, nonfinite.consecutive + discarded),
        jnp.where(discarded, before.step, nonfinite.step),
        jnp.where(discarded, values, nonfinite.values),
    )
    state = optax.tree.where(taken, after, before)
    return state._replace(step=after.step) if policy == "skip" else state, nonfinite


def get_report(nonfinite: NonFiniteState) -> NonFiniteReport | None:
    """Returns the report of the latest discarded step, None if there is none; takes counts on the host."""
    if nonfinite.step < 0:
        return None
    index = int(np.flatnonzero(~np.isfinite(nonfinite.values))[0])
    return NonFiniteReport(*CHECKED[index], float(nonfinite.values[index]), int(nonfinite.step) + 1)


def find_nonfinite(state: TrainState) -> NonFiniteReport | None:
    """Returns a report of the first array of a state that is not finite, None if all are.

    >>> from robust_gan.types import PlayerState
    >>> player = PlayerState({"kernel": jnp.array([1.0, jnp.inf])}, {}, ())
    >>> find_nonfinite(TrainState(jnp.int32(3), jax.random.key(0), player, ())).name
    'classifier/params/kernel'
    """
    for name, leaf in leaves.named(state).items():
        array = leaves.to_host(leaf)
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            player = "generator" if name.startswith("adversary") else "classifier"
            return NonFiniteReport(name, player, float(array[~np.isfinite(array)][0]), int(state.step))
    return None


class NonFiniteMonitor:
    """Counts discarded steps on the host, and ends the run where the policy says so.

    Args:
        folder: The workdir.
        config: The run.
        info: Its data.
        policy: One of `POLICIES`.
        skipped: Steps that were skipped before the run was resumed.
        log_fn: Called with a sentence when steps were skipped.

    Attributes:
        skipped: Steps skipped so far.
    """

    def __init__(
        self, folder: epath.Path, config: Config, info: checkpoint.DataInfo, policy: str, skipped: int,
        log_fn: Callable[[str], Any],
    ) -> None:  # fmt: skip
        self._folder, self._config, self._info, self._policy, self._log_fn = folder, config, info, policy, log_fn
        self.skipped = skipped

    @property
    def metrics(self) -> dict[str, float]:
        """The metric `skipped_steps`; none under the policy `stop`."""
        return {"skipped_steps": float(self.skipped)} if self._policy == "skip" else {}

    def check(self, nonfinite: NonFiniteState, state: TrainState) -> None:
        """Counts the steps discarded since the last call.

        Args:
            nonfinite: The counts, on the host.
            state: The newest state; under the policy `stop`, the one before the discarded step.

        Raises:
            NotFiniteError: A step was discarded under the policy `stop`, or too many in a row.
        """
        report = get_report(nonfinite)
        if report is None or nonfinite.skipped == self.skipped:
            return
        if self._policy == "stop" or nonfinite.consecutive >= MAX_CONSECUTIVE:
            self._end(state, report, int(nonfinite.consecutive))
        self._log_fn(
            f"steps skipped: {nonfinite.skipped - self.skipped}; the last was step {report.step}, where {report.name} "
            f"of the {report.player} was {report.value}"
        )
        self.skipped = int(nonfinite.skipped)

    def check_state(self, state: TrainState) -> None:
        """Checks a state before it is saved.

        Raises:
            NotFiniteError: An array has overflowed.
        """
        if report := find_nonfinite(state):
            self._end(state, report, 1)

    def _end(self, state: TrainState, report: NonFiniteReport, consecutive: int) -> NoReturn:
        """Saves the state before the step, which repeats it: images and keys are functions of the step."""
        folder = self._folder / FOLDER
        many = f", the last of {consecutive} steps in a row" if consecutive >= MAX_CONSECUTIVE else ""
        error = NotFiniteError(
            f"{report.name} of the {report.player} is {report.value} at step {report.step}{many}: the state before it "
            f"is saved in {folder}, earlier checkpoints are in {self._folder}; lower the learning rate of the "
            f"{report.player}, or skip such steps with --on_nan=skip"
        )

        def save() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(report._asdict() | {"value": str(report.value)}) + "\n"
            workdir.write_text(folder / "nonfinite.json", text)
            with contextlib.closing(checkpoint.Writer(folder, self._config, self._info)) as writer:
                writer.save(int(state.step), state, {checkpoint.SELECTION: -1.0})

        try:
            parallel.broadcast_from_primary(save)
        except Exception as second:  # Whatever it is, the report matters more.
            error.add_note(f"its state could not be saved: {second}")
        raise error
