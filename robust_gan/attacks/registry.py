"""The attacks by name, as on the command line."""

import functools
import re
from collections.abc import Callable
from typing import Any

from robust_gan.attacks.apgd import apgd, apgd_targeted
from robust_gan.attacks.fab import fab, fab_targeted
from robust_gan.attacks.noise import uniform_noise
from robust_gan.attacks.pgd import fgsm, pgd
from robust_gan.attacks.spsa import spsa
from robust_gan.attacks.square import square
from robust_gan.config import renamed
from robust_gan.errors import UserError
from robust_gan.losses import cross_entropy, dlr, margin
from robust_gan.types import Attack

_PLAIN = {"uniform_noise": uniform_noise, "fgsm": fgsm}
_PGD = re.compile(r"(margin_)?pgd([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,3}))?")
# Without numbers: those of AutoAttack.
_COUNTED = re.compile(r"(apgd_ce|apgd_dlr|apgd_t|fab_t|fab|square|spsa)([1-9][0-9]{0,4})?(?:x([1-9][0-9]{0,3}))?")
_ATTACKS: dict[str, Callable[..., Any]] = {
    "apgd_ce": functools.partial(apgd, loss_fn=cross_entropy),
    "apgd_dlr": functools.partial(apgd, loss_fn=dlr),
    "apgd_t": apgd_targeted,
    "fab": fab,
    "fab_t": fab_targeted,
    "square": square,
    "spsa": spsa,
}
_ONE_RUN = ("square", "spsa")
_CLASSES_NEEDED = {"apgd_dlr": 3, "apgd_t": 4}


@functools.cache
def by_name(name: str) -> Attack:
    """Returns the attack of a name.

    The names are `uniform_noise`, `fgsm`, `pgdN` (PGD with N steps of 2.5 epsilon / N from a random start), `pgdNxR`
    (with R restarts), and `margin_pgdN`, `margin_pgdNxR` (with the margin loss in place of cross-entropy);
    `apgd_ce`, `apgd_dlr`, `apgd_t`, `fab`, `fab_t` and `square` with the constants of AutoAttack, and `spsa`. A number
    after one of these is the number of steps (queries for `square`), a second one after an x the number of restarts:
    `apgd_ce50`, `square1000`, `fab_t100x5`. The same name returns the same object, so that compiled functions are
    reused.

    Args:
        name: The name.

    Returns:
        The attack.

    Raises:
        UserError: The name is unknown; the message lists the known forms.

    >>> by_name("pgd50x10").keywords["num_restarts"], by_name("square1000").keywords
    (10, {'num_queries': 1000})
    """
    if name in _PLAIN:
        return _PLAIN[name]
    if match := _PGD.fullmatch(name):
        loss_fn = margin if match[1] else cross_entropy
        return functools.partial(pgd, num_steps=int(match[2]), num_restarts=int(match[3] or 1), loss_fn=loss_fn)
    match = _COUNTED.fullmatch(name)
    if match and not (match[3] and match[1] in _ONE_RUN) and not (match[3] and not match[2]):
        counts = {"num_queries" if match[1] == "square" else "num_steps": match[2], "num_restarts": match[3]}
        given = {setting: int(count) for setting, count in counts.items() if count}
        return functools.partial(_ATTACKS[match[1]], **given)
    raise UserError(
        f"unknown attack {name!r}: the attacks are clean, uniform_noise, fgsm, pgdN, pgdNxR, margin_pgdN, "
        "margin_pgdNxR (N steps, R restarts, as in pgd10 or pgd50x10), apgd_ce, apgd_dlr, apgd_t, fab, fab_t, square, "
        "spsa (as they are, or with numbers as in apgd_ce50, apgd_ce100x5 or square1000) and generator"
        f"{renamed.hint(renamed.ATTACKS, name)}"
    )


def classes_needed(name: str) -> int:
    """Returns the least number of classes of an attack: 3 for the DLR loss, 4 for its targeted form, otherwise 2.

    >>> classes_needed("apgd_t100x2"), classes_needed("apgd_dlr"), classes_needed("pgd10")
    (4, 3, 2)
    """
    match = _COUNTED.fullmatch(name)
    return _CLASSES_NEEDED.get(match[1], 2) if match else 2
