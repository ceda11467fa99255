"""Attacks: pure, jit-able functions from images and true labels to adversarial images inside the threat model.

Each is called as `attack(logits_fn, key, images, labels, threat)`; further settings are keyword arguments, fixed with
`functools.partial` where an `Attack` is wanted. `by_name` gives the attacks of the command line.
"""

import functools
import re

from robust_gan.attacks.gradient import fgsm, input_gradient, pgd
from robust_gan.attacks.learned import generator
from robust_gan.attacks.noise import transfer, uniform_noise
from robust_gan.errors import UserError
from robust_gan.losses import cross_entropy, margin
from robust_gan.types import Attack

__all__ = ["by_name", "fgsm", "generator", "input_gradient", "pgd", "transfer", "uniform_noise"]

_PGD = re.compile(r"(margin_)?pgd([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,3}))?")


@functools.cache
def by_name(name: str) -> Attack:
    """Returns the attack that a name of the command line stands for.

    The names are `uniform_noise`, `fgsm`, `pgdN` (PGD with N steps of 2.5 epsilon / N from a random start), `pgdNxR`
    (with R restarts), and `margin_pgdN`, `margin_pgdNxR` (with the margin loss in place of cross-entropy). The same
    name gives the same object, so that compiled functions are found again.

    Args:
        name: The name.

    Returns:
        The attack.

    Raises:
        UserError: The name is unknown; the sentence lists the forms that are.

    >>> by_name("pgd50x10").keywords["num_restarts"]
    10
    """
    if name == "uniform_noise":
        return uniform_noise
    if name == "fgsm":
        return fgsm
    if match := _PGD.fullmatch(name):
        loss_fn = margin if match[1] else cross_entropy
        return functools.partial(pgd, num_steps=int(match[2]), num_restarts=int(match[3] or 1), loss_fn=loss_fn)
    raise UserError(
        f"unknown attack {name!r}: the attacks are clean, uniform_noise, fgsm, pgdN, pgdNxR, margin_pgdN, "
        "margin_pgdNxR (N steps, R restarts, as in pgd10 or pgd50x10) and generator"
    )
