"""Least accuracies that an evaluation must reach, for the tests of other projects."""

from collections.abc import Sequence
from typing import NamedTuple

from robust_gan.attacks import VERSIONS
from robust_gan.errors import UserError
from robust_gan.evaluation.suites import CORRUPTIONS

AUTOATTACK, WORST_CASE = "autoattack", "worst_case"


class Requirement(NamedTuple):
    """A least accuracy, and what was measured.

    Attributes:
        accuracy: `clean`, `worst_case` (white-box), `autoattack`, `corruptions` (the mean), or the name of an attack.
        at_least: A share in [0, 1].
        target: The model; empty before the evaluation.
        found: Its accuracy; None where the attack cannot be made on it.
    """

    accuracy: str
    at_least: float
    target: str = ""
    found: float | None = None

    @property
    def is_met(self) -> bool:
        """Whether the accuracy reaches the bound."""
        return self.found is not None and self.found >= self.at_least

    def __str__(self) -> str:
        """Returns the finding in a phrase."""
        found = "was not measured" if self.found is None else f"is {self.found:.4f}"
        below = "" if self.is_met else ", below what is required"
        return f"{self.accuracy} of {self.target} {found}{below} (at least {self.at_least:g})"


def parse_requirements(
    text: str, attacks: Sequence[str], sequential: Sequence[str], *, corrupted: bool = False
) -> list[Requirement]:
    """Returns the requirements of the flag `--require`.

    Args:
        text: Comparisons separated by commas, such as `autoattack>=0.45,clean>=0.9`; empty for none.
        attacks: Names of the attacks that are made on every model.
        sequential: Names of the sequential attacks.
        corrupted: Whether the accuracy under common corruptions is measured.

    Raises:
        UserError: A part is no comparison, or names an accuracy that the evaluation does not measure.

    >>> parse_requirements("clean>=0.9", ["fgsm"], [])[0].at_least
    0.9
    >>> parse_requirements("pgd10>=0.4", ["fgsm"], [])
    Traceback (most recent call last):
    robust_gan.errors.UserError: --require names pgd10, which this evaluation does not measure: it measures clean, \
worst_case, fgsm
    """
    measured = ["clean", WORST_CASE, *attacks, *(name for name in sequential if name not in attacks)]
    if tuple(sequential) in (VERSIONS["standard"], VERSIONS["few_classes"]):
        measured.append(AUTOATTACK)
    measured += [CORRUPTIONS] if corrupted else []
    found = []
    for part in filter(None, map(str.strip, text.split(","))):
        name, comparison, bound = (piece.strip() for piece in part.partition(">="))
        try:
            share = float(bound)
        except ValueError:
            share = -1.0
        if not (name and comparison and 0 <= share <= 1):
            raise UserError(
                f"--require is no comparison of an accuracy with a share in [0, 1]: {part!r}: give NAME>=SHARE, such "
                "as autoattack>=0.45"
            )
        if name not in measured:
            raise UserError(
                f"--require names {name}, which this evaluation does not measure: it measures {', '.join(measured)}"
            )
        found.append(Requirement(name, share))
    return found
