"""Plans an evaluation: which attacks a configuration names, and which a number of classes allows."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from robust_gan import attacks as attacks_lib
from robust_gan.errors import UserError
from robust_gan.evaluation.certified import check_methods
from robust_gan.evaluation.config import EvaluationConfig
from robust_gan.evaluation.models import GENERATOR, RETRAINED, attack_names
from robust_gan.evaluation.requirements import Requirement, parse_requirements
from robust_gan.evaluation.suites import CORRUPTIONS, get_suite
from robust_gan.types import Attack

_PLOTTED = "pgd40"


class AttackPlan(NamedTuple):
    """The attacks of an evaluation.

    Attributes:
        names: Made on every model and tried on every target.
        sequential: Made on each target, each on the images that the ones before left robust.
        functions: The attacks among them that are functions of the user's own, by name.
        plotted: The attack of the plots and the curve.
        requirements: The accuracies that must be reached.
        corrupted: Whether common corruptions are scored.
    """

    names: tuple[str, ...]
    sequential: tuple[str, ...]
    functions: dict[str, Attack]
    plotted: str
    requirements: tuple[Requirement, ...] = ()
    corrupted: bool = False

    def pick(self, names: Sequence[str]) -> list[str | tuple[str, Attack]]:
        """Returns attacks as `evaluate_transfer` and `evaluate_sequential` take them."""
        return [(name, self.functions[name]) if name in self.functions else name for name in names]


def plan_attacks(config: EvaluationConfig, functions: Mapping[str, Attack] = MappingProxyType({})) -> AttackPlan:
    """Returns the attacks of a configuration.

    Args:
        config: The configuration.
        functions: Attacks of the user's own by name; those that the configuration does not name are made on every
            model.

    Raises:
        UserError: A name or the suite is unknown, or an output needs other attacks.

    >>> plan_attacks(EvaluationConfig(suite="autoattack")).sequential
    ('apgd_ce', 'apgd_t', 'fab_t', 'square')
    """
    given = [None if names is None else ",".join(names) for names in (config.attacks, config.sequential)]
    suite = get_suite(config.suite, *given)
    lists = [text.split(",") for text in suite]
    check_methods(config)
    known = [attack_names([name for name in names if name not in functions]) for names in lists]
    if functions and not config.suite and config.attacks is None:
        lists[0], known[0] = [], ()
    names, sequential = (
        tuple(name for name in listed if name in functions or name in kept)
        for listed, kept in zip(([name.strip() for name in names] for names in lists), known, strict=True)
    )
    names += tuple(name for name in functions if name not in (*names, *sequential))
    if "transfer" in config.plots and not names:
        raise UserError("transfer.png shows an attack that is made on every model: name one with --attacks")
    if config.save_adversarial and not sequential:
        raise UserError(
            "adversarial.npz holds the adversarial images of a sequential evaluation: give --suite=autoattack or "
            "--sequential"
        )
    on_pixels = [name for name in names if name not in (GENERATOR, *RETRAINED, *functions)]
    used = {name: functions[name] for name in functions if name in (*names, *sequential)}
    corrupted = config.suite == CORRUPTIONS
    requirements = parse_requirements(config.require, names, sequential, corrupted=corrupted)
    plotted = on_pixels[-1] if on_pixels else _PLOTTED
    return AttackPlan(names, sequential, used, plotted, tuple(requirements), corrupted)


def fit_classes(attacks: AttackPlan, model: str, classes: int) -> AttackPlan:
    """Returns attacks that a number of classes allows: AutoAttack's standard version becomes that for few classes.

    Args:
        attacks: The attacks.
        model: Name of the model, for the error message.
        classes: Its number of classes.

    Raises:
        UserError: An attack needs more classes.

    >>> fit_classes(plan_attacks(EvaluationConfig(suite="autoattack")), "binary", 2).sequential
    ('apgd_ce', 'margin_pgd100x5', 'fab_t', 'square')
    """
    standard, few = (attacks_lib.VERSIONS[version] for version in ("standard", "few_classes"))
    if classes < 4 and attacks.sequential[: len(standard)] == standard:
        attacks = attacks._replace(sequential=few + attacks.sequential[len(standard) :])
    for name in sorted({*attacks.names, *attacks.sequential} - set(attacks.functions)):
        if classes < (needed := attacks_lib.classes_needed(name)):
            raise UserError(
                f"{name} needs a classifier of at least {needed} classes, but {model} has {classes}: "
                "leave it out with --attacks or --sequential"
            )
    return attacks
