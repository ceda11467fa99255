"""Names of the user's own networks in a configuration.

A config file is Python, so it can register what it names. A checkpoint holds the name and not the network: register the
same network before loading it. A network named `package.module:function` needs no registration.
"""

from collections.abc import Callable

import flax.linen as nn

from robust_gan.errors import UserError
from robust_gan.networks import classifiers, generators, inference


def register_classifier(name: str, module: Callable[..., nn.Module]) -> None:
    """Makes `classifier.network` of a configuration accept a name.

    Args:
        name: The name; one that was registered before then means the new module.
        module: Called as `module(num_classes=K, train=..., axis_name=..., dtype=...)`, by keyword; returns a module
            that maps pixels `[B, H, W, C]` in [-1, 1] to logits `[B, K]`. `train` is whether BatchNorm uses the
            statistics of the batch, `axis_name` over which mapped axis it averages them (or `None`), `dtype` in which
            the inner layers compute (`None` for float32).

    Raises:
        UserError: The name is one of `CLASSIFIERS`.

    >>> class Linear(nn.Module):
    ...     num_classes: int
    ...
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         return nn.Dense(self.num_classes)(x.reshape(len(x), -1))
    >>> register_classifier("linear", lambda *, num_classes, train, axis_name, dtype: Linear(num_classes))
    >>> import jax
    >>> images = jax.numpy.zeros((2, 8, 8, 1))
    >>> params, _ = classifiers.build_classifier("linear", 10).init(jax.random.key(0), images)
    >>> params["Dense_0"]["kernel"].shape
    (64, 10)
    >>> _ = classifiers.MODULES.pop("linear")
    """
    _register(name, module, classifiers.CLASSIFIERS, classifiers.MODULES, "classifier")
    classifiers.build_classifier.cache_clear()
    inference.classify.cache_clear()


def register_generator(name: str, module: Callable[..., nn.Module]) -> None:
    """Makes `adversary.generator.network` of a configuration accept a name.

    Args:
        name: The name; one that was registered before then means the new module.
        module: Called as `module(channels=C, train=..., axis_name=..., dtype=..., remat=...)`, by keyword; returns a
            module that maps the generator's inputs, `[B, H, W, ...]` with pixels in [-1, 1], to noise `[B, H, W, C]`
            in [-1, 1]. Height and width are divisible by 4; `remat` asks it to compute its inner layers twice and keep
            less.

    Raises:
        UserError: The name is one of `GENERATORS`.

    >>> register_generator("resnet_generator", nn.Dense)
    Traceback (most recent call last):
    robust_gan.errors.UserError: there is a generator 'resnet_generator' already: choose another name
    """
    _register(name, module, generators.GENERATORS, generators.MODULES, "generator")
    generators.build_generator.cache_clear()
    inference.generate.cache_clear()


def _register(
    name: str,
    module: Callable[..., nn.Module],
    taken: tuple[str, ...],
    modules: dict[str, Callable[..., nn.Module]],
    kind: str,
) -> None:
    if name in taken:
        raise UserError(f"there is a {kind} {name!r} already: choose another name")
    modules[name] = module
