"""Which attacks make an evaluation: from a look in passing to all there is."""

from typing import NamedTuple

from robust_gan.errors import UserError


class Suite(NamedTuple):
    """Attacks by what is done with them.

    Attributes:
        matrix: Names separated by commas: each made on every model and tried on every target.
        sequential: Names separated by commas: made on each target, each on the images that are robust so far.
    """

    matrix: str
    sequential: str


CORRUPTIONS = "corruptions"
_PAPER = "uniform_noise,fgsm,pgd10,pgd50x10,margin_pgd50x10,generator"
_AUTOATTACK = "apgd_ce,apgd_t,fab_t,square"

SUITES = {
    "quick": Suite("fgsm,pgd10,generator", ""),
    "paper": Suite(_PAPER, ""),
    "autoattack": Suite("", _AUTOATTACK),
    "full": Suite(
        f"{_PAPER},margin_pgd50x10_odi,mt_pgd50,retrained_generator,retrained_generator_refined", f"{_AUTOATTACK},spsa"
    ),
    CORRUPTIONS: Suite("", ""),
}
"""`quick`; `paper`: FGSM, PGD and the generator, with longer forms of PGD; `autoattack`: the standard version;
`full`: all of it, PGD from output-diversified starts and towards every class, fresh generators, and SPSA as the
gradient-free cross-check; `corruptions`: common corruptions, without an attack."""


def get_suite(name: str, attacks: str | None, sequential: str | None) -> Suite:
    """Returns the attacks that a name and what is given beside it stand for.

    Args:
        name: Of `SUITES`, or empty.
        attacks: In place of the suite's matrix; None for that of the suite, or of `quick` without one.
        sequential: Instead of the suite's sequential attacks; None for those.

    Raises:
        UserError: The name is unknown.

    >>> get_suite("autoattack", "pgd10", None)
    Suite(matrix='pgd10', sequential='apgd_ce,apgd_t,fab_t,square')
    """
    if name and name not in SUITES:
        raise UserError(f"the suite must be one of {', '.join(SUITES)}, not {name!r}")
    chosen = SUITES[name] if name else Suite("clean,fgsm,pgd10,generator", "")
    return Suite(chosen.matrix if attacks is None else attacks, chosen.sequential if sequential is None else sequential)
