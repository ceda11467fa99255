"""What the host does about steps whose numbers were not finite: it counts them, or ends the run and keeps the state."""

import contextlib
import json
from collections.abc import Callable
from typing import Any, NoReturn

from etils import epath

from robust_gan import checkpoint, parallel
from robust_gan.checkpoint import DataInfo
from robust_gan.config import Config
from robust_gan.errors import NotFiniteError
from robust_gan.game import TrainState
from robust_gan.storage import workdir
from robust_gan.training import nonfinite
from robust_gan.training.nonfinite import NonFiniteReport, NonFiniteState

FOLDER = "not_finite"
"""In the workdir; a workdir itself, so that it can be evaluated: `--checkpoint=WORKDIR/not_finite`."""

MOST_IN_A_ROW = 50
"""Steps that may be skipped one after the other: more will not get better."""


class NonFiniteMonitor:
    """Looks at what the compiled steps watched.

    Args:
        folder: The workdir.
        config: The run.
        info: Its data.
        policy: One of `nonfinite.POLICIES`.
        skipped: Steps that were not taken before.
        say: Called with a sentence where steps were skipped.

    Attributes:
        skipped: Steps that were not taken so far.
    """

    def __init__(
        self, folder: epath.Path, config: Config, info: DataInfo, policy: str, skipped: int, say: Callable[[str], Any]
    ) -> None:
        """Looks at nothing yet."""
        self._folder, self._config, self._info, self._policy, self._say = folder, config, info, policy, say
        self.skipped = skipped

    @property
    def counts(self) -> dict[str, float]:
        """What goes into the metrics: nothing where a run ends at its first such step."""
        return {"skipped_steps": float(self.skipped)} if self._policy == "skip" else {}

    def check(self, watch: NonFiniteState, state: TrainState) -> None:
        """Counts the steps that were not taken, or ends the run.

        Args:
            watch: On the host.
            state: The newest; where the policy is to stop, that before the step.

        Raises:
            NotFiniteError: A step was not finite and the run is to stop there, or there were too many in a row.
        """
        found = nonfinite.finding(watch)
        if found is None or watch.skipped == self.skipped:
            return
        if self._policy == "stop" or watch.in_a_row >= MOST_IN_A_ROW:
            self._end(state, found, int(watch.in_a_row))
        self._say(
            f"steps skipped: {watch.skipped - self.skipped}; the last was step {found.step}, where {found.name} of the "
            f"{found.player} was {found.value}"
        )
        self.skipped = int(watch.skipped)

    def check_state(self, state: TrainState) -> None:
        """Ends the run where a state that is to be saved is not finite.

        Raises:
            NotFiniteError: An array has overflowed.
        """
        if found := nonfinite.broken(state):
            self._end(state, found, 1)

    def _end(self, state: TrainState, found: NonFiniteReport, in_a_row: int) -> NoReturn:
        """Keeps the state from which the step can be game again: its images and keys are a function of the step."""
        kept = self._folder / FOLDER
        many = f", the last of {in_a_row} steps in a row" if in_a_row >= MOST_IN_A_ROW else ""
        error = NotFiniteError(
            f"{found.name} of the {found.player} is {found.value} at step {found.step}{many}: the state there is in "
            f"{kept}, the checkpoints in {self._folder} are of before; lower the learning rate of the "
            f"{found.player}, or go on without such steps with --on_nan=skip"
        )

        def keep() -> None:
            kept.mkdir(parents=True, exist_ok=True)
            workdir.write_text(kept / "finding.json", json.dumps(found._asdict() | {"value": str(found.value)}) + "\n")
            with contextlib.closing(checkpoint.Writer(kept, self._config, self._info)) as writer:
                writer.save(int(state.step), state, {checkpoint.SELECTION: -1.0})

        try:
            parallel.broadcast_from_primary(keep)
        except Exception as second:  # Whatever it was, the finding matters more.
            error.add_note(f"and its state could not be kept: {second}")
        raise error
