"""The built-in configs, a module for each; `--config=digits:pgd/short` names the config, the method and the budget."""

import importlib
import pkgutil

from robust_gan.config.schema import Config
from robust_gan.errors import UserError

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))
"""The names of the built-in configs."""


def get_config(name: str, choice: str = "generator") -> Config:
    """Returns a built-in config.

    Args:
        name: One of `NAMES`.
        choice: The method, or `METHOD/BUDGET`; see `robust_gan.config.methods.parse_choice`.

    Raises:
        UserError: The name, the method or the budget is unknown.

    >>> get_config("digits", "pgd/debug").num_steps
    4
    """
    if name not in NAMES:
        raise UserError(f"there is no built-in config {name!r}: the built-in ones are {', '.join(NAMES)}")
    config: Config = importlib.import_module(f"{__name__}.{name}").get_config(choice)
    return config
