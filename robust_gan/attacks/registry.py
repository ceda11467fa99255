"""The attacks by name, as on the command line."""

import functools
import re
from collections.abc import Callable
from typing import Any

from robust_gan.attacks.apgd import apgd, apgd_targeted
from robust_gan.attacks.fab import fab, fab_targeted
from robust_gan.attacks.fmn import fmn
from robust_gan.attacks.noise import uniform_noise
from robust_gan.attacks.pgd import fgsm, pgd, pgd_multi_targeted
from robust_gan.attacks.spsa import spsa
from robust_gan.attacks.square import square
from robust_gan.attacks.targeted import towards
from robust_gan.config import renamed
from robust_gan.errors import UserError
from robust_gan.losses import cross_entropy, dlr, margin
from robust_gan.types import Attack

_PLAIN = {"uniform_noise": uniform_noise, "fgsm": fgsm}
_PGD = re.compile(r"(margin_|mt_)?pgd([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,3}))?(_odi)?")
# Without numbers: those of AutoAttack.
_COUNTED = re.compile(
    r"(apgd_ce|apgd_dlr|apgd_t|fab_t|fab|square|spsa|fmn)([1-9][0-9]{0,4})?(?:x([1-9][0-9]{0,3}))?(_odi)?"
)
_TARGETED = re.compile(r"fgsm|(margin_)?pgd.*|apgd_(ce|dlr).*|square.*|fmn.*")
_ATTACKS: dict[str, Callable[..., Any]] = {
    "apgd_ce": functools.partial(apgd, loss_fn=cross_entropy),
    "apgd_dlr": functools.partial(apgd, loss_fn=dlr),
    "apgd_t": apgd_targeted,
    "fab": fab,
    "fab_t": fab_targeted,
    "square": square,
    "spsa": spsa,
    "fmn": fmn,
}
_PGD_LOSSES = {None: cross_entropy, "margin_": margin}
_ONE_RUN, _DIVERSIFIED = ("square", "spsa"), ("apgd_ce", "apgd_dlr")
_CLASSES_NEEDED = {"apgd_dlr": 3, "apgd_t": 4}


@functools.cache
def by_name(name: str) -> Attack:
    """Returns the attack of a name.

    The names are `uniform_noise`, `fgsm`, `pgdN` (PGD with N steps of 2.5 epsilon / N from a random start), `pgdNxR`
    (with R restarts), `margin_pgdN`, `margin_pgdNxR` (with the margin loss in place of cross-entropy) and `mt_pgdN`,
    `mt_pgdNxR` (multi-targeted); `apgd_ce`, `apgd_dlr`, `apgd_t`, `fab`, `fab_t` and `square` with the constants of
    AutoAttack, `spsa` and `fmn`. A number after one of these is the number of steps (queries for `square`), a second
    one after an x the number of restarts: `apgd_ce50`, `square1000`, `fab_t100x5`. With `_odi` at the end the forms of
    PGD, `apgd_ce` and `apgd_dlr` start from output-diversified points: `pgd100x20_odi`, `apgd_ce_odi`. The same name
    returns the same object, so that compiled functions are reused. With `_to3` at the end FGSM, PGD, `apgd_ce`,
    `apgd_dlr`, `square` and `fmn` aim at class 3, see `towards`: `pgd50_to3`.

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
    stem, _, number = name.rpartition("_to")
    if number.isdecimal() and str(int(number)) == number and _TARGETED.fullmatch(stem):
        return functools.partial(towards, attack=by_name(stem), to_class=int(number))
    if match := _PGD.fullmatch(name):
        attack = pgd_multi_targeted if match[1] == "mt_" else functools.partial(pgd, loss_fn=_PGD_LOSSES[match[1]])
        given = {"num_steps": int(match[2]), "num_restarts": int(match[3] or 1)}
        return functools.partial(attack, **given, **({"start": "odi"} if match[4] else {}))
    match = _COUNTED.fullmatch(name)
    if (
        match
        and not (match[3] and (match[1] in _ONE_RUN or not match[2]))
        and not (match[4] and match[1] not in _DIVERSIFIED)
    ):
        counts = {"num_queries" if match[1] == "square" else "num_steps": match[2], "num_restarts": match[3]}
        given = {setting: int(count) for setting, count in counts.items() if count}
        return functools.partial(_ATTACKS[match[1]], **given, **({"start": "odi"} if match[4] else {}))
    raise UserError(
        f"unknown attack {name!r}: the attacks are clean, uniform_noise, fgsm, pgdN, pgdNxR, margin_pgdN, "
        "margin_pgdNxR, mt_pgdN, mt_pgdNxR (N steps, R restarts, as in pgd10 or pgd50x10), "
        "apgd_ce, apgd_dlr, apgd_t, fab, fab_t, square, spsa, fmn (as they are, or with numbers as in apgd_ce50, "
        "apgd_ce100x5 or square1000), "
        "pgdNxR_odi, margin_pgdNxR_odi, mt_pgdNxR_odi, apgd_ce_odi, apgd_dlr_odi, "
        "with a target class as in pgd50_to3, and generator"
        f"{renamed.hint(renamed.ATTACKS, name)}"
    )


def classes_needed(name: str) -> int:
    """Returns the least number of classes of an attack: 3 for the DLR loss, 4 for its targeted form, otherwise 2.

    >>> classes_needed("apgd_t100x2"), classes_needed("apgd_dlr"), classes_needed("pgd10")
    (4, 3, 2)
    """
    match = _COUNTED.fullmatch(name.partition("_to")[0])
    return _CLASSES_NEEDED.get(match[1], 2) if match else 2
