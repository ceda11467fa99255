"""The result of an evaluation."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from robust_gan.certification import Smoothed
from robust_gan.errors import UserError, one_line
from robust_gan.evaluation.alarms import Alarm
from robust_gan.evaluation.config import EvaluationConfig
from robust_gan.evaluation.curve import Curve
from robust_gan.evaluation.models import CLEAN
from robust_gan.evaluation.requirements import AUTOATTACK, WORST_CASE, Requirement
from robust_gan.evaluation.sequential import AttackResult
from robust_gan.evaluation.state import Rows
from robust_gan.evaluation.subject import Subject
from robust_gan.evaluation.suites import CORRUPTIONS
from robust_gan.evaluation.transfer import Scores

SEQUENTIAL = "sequential attacks"
"""Key of the predictions after a sequential evaluation."""


@dataclasses.dataclass
class SequentialResult:
    """The result of the sequential evaluation of one model.

    Attributes:
        robust: bool `[N]`, which images are robust under all attacks.
        attacks: An `AttackResult` for `clean` and each attack.
        broken_by: int16 `[N]`, the index of the result that broke each image; -1 where it is robust.
        predicted: int32 `[N]`, the class that each image is classified as after the attacks.
        adversarial: The adversarial images, where they were asked for.
    """

    robust: np.ndarray
    attacks: list[AttackResult]
    broken_by: np.ndarray
    predicted: np.ndarray
    adversarial: Rows | None = None

    def broken(self) -> dict[str, np.ndarray]:
        """Returns for each attack, `clean` included, which images it broke, bool `[N]`."""
        return {result.attack: self.broken_by == index for index, result in enumerate(self.attacks)}


@dataclasses.dataclass
class EvaluationResult:
    """The result of an evaluation.

    Attributes:
        config: The configuration.
        subject: The models, images, threat model and attacks.
        scores: Clean accuracy, and robust accuracy under the attacks made on every model, image by image.
        sequential: The result of the sequential evaluation of each target; empty where there was none.
        alarms: For each target.
        certified: For each target which images are certified, bool `[N]`; empty where `config.certify` has no bounds.
        smoothed: For each target the predictions of its smoothed classifier, where `config.certify` has smoothing.
        corrupted: For each target and common corruption which images are classified correctly at each severity, bool
            `[5, N]`; empty without the suite `corruptions`.
        curve: Robust accuracy against epsilon, where it was asked for.
        traces: The steps of the attack of the plots, of `trace_steps`, where they were asked for.
        notes: Sentences on what could not be computed or written.
    """

    config: EvaluationConfig
    subject: Subject
    scores: Scores
    sequential: dict[str, SequentialResult] = dataclasses.field(default_factory=dict)
    alarms: dict[str, list[Alarm]] = dataclasses.field(default_factory=dict)
    certified: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    smoothed: dict[str, Smoothed] = dataclasses.field(default_factory=dict)
    corrupted: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    curve: Curve | None = None
    traces: dict[str, Any] | None = None
    notes: list[str] = dataclasses.field(default_factory=list)

    def clean_accuracy(self, target: str) -> float:
        """Returns the accuracy of a target on clean images."""
        return self.scores.clean_accuracy(target)

    def robust_accuracy(self, target: str) -> float:
        """Returns the robust accuracy of a target: the worst case, image by image, over all white-box attacks."""
        return float(self.robust(target).mean())

    def robust(self, target: str) -> np.ndarray:
        """Returns the images that are classified correctly clean and under all white-box attacks, bool `[N]`."""
        also = self.sequential[target].robust if target in self.sequential else None
        found = self.scores.robust_images(target, [target], also=also)
        return self.scores.clean[self.scores.targets.index(target)] if found is None else found

    def requirements(self) -> list[Requirement]:
        """Returns what was measured of each accuracy that `config.require` names, for each target."""
        return [
            required._replace(target=target, found=self._find(target, required.accuracy))
            for required in self.subject.attacks.requirements
            for target in self.scores.targets
        ]

    def _find(self, target: str, accuracy: str) -> float | None:
        if accuracy == CLEAN:
            return self.clean_accuracy(target)
        if accuracy == CORRUPTIONS:
            return float(np.mean([correct.mean() for correct in self.corrupted[target].values()]))
        if accuracy == WORST_CASE:
            return self.robust_accuracy(target)
        if accuracy in self.subject.attacks.names:
            return self.scores.robust_accuracy(target, [target], [accuracy])
        results = self.sequential[target].attacks
        found = [result for result in results if accuracy in (AUTOATTACK, result.attack)]
        return found[-1].robust_accuracy if found else None

    def attempt(self, what: str, make: Callable[[], Any]) -> Any:
        """Returns the result of a function; where it fails, adds a note and returns None."""
        try:
            return make()
        except Exception as error:  # A model is the user's own program, and a report is not lost for a plot.
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"
            self.notes.append(f"{what}: not made: {reason.rstrip('.')}.")
            return None


def predictions(result: EvaluationResult) -> dict[tuple[str, str], np.ndarray]:
    """Returns the predicted classes `[N]` for each (target, attack), `clean` and `SEQUENTIAL` included."""
    sequential = {(name, SEQUENTIAL): found.predicted for name, found in result.sequential.items()}
    return dict(result.scores.predicted) | sequential
