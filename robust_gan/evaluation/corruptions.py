"""Common corruptions of images, and the accuracy under them: no attack, and no threat model."""

import io
import zlib
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from robust_gan import parallel
from robust_gan.data import batching
from robust_gan.data.array_files import take
from robust_gan.errors import UserError
from robust_gan.evaluation.sharded_model import ShardedModel, batch_width
from robust_gan.evaluation.state import EvaluationState

_LARGE = 64
"""Pixels of the shorter side from which the parameters of ImageNet-C hold; those of CIFAR-10-C below."""

_PARAMETERS = MappingProxyType({
    "gaussian_noise": ((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": ((500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse_noise": ((0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    "gaussian_blur": ((0.4, 0.6, 0.7, 0.8, 1.0), (1.0, 2.0, 3.0, 4.0, 6.0)),
    "brightness": ((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": ((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "pixelate": ((0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": ((80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
})  # fmt: skip
CORRUPTIONS = tuple(_PARAMETERS)
SEVERITIES = (1, 2, 3, 4, 5)


def check_shape(image_shape: Sequence[int]) -> None:
    """Refuses images that are neither grey nor in colour.

    Raises:
        UserError: They have another number of channels than 1 or 3.

    >>> check_shape((8, 8, 1))
    """
    if image_shape[-1] not in (1, 3):
        raise UserError(
            f"--suite=corruptions takes grey images or colour ones, of 1 or 3 channels, not of {image_shape[-1]}"
        )


def corrupt(
    images: np.ndarray,
    name: str,
    severity: int,
    *,
    seed: int = 0,
    positions: Sequence[int] | np.ndarray | None = None,
) -> np.ndarray:
    """Computes corrupted images. The result for an image depends on the seed and its position alone.

    Args:
        images: float in [0, 1], `[B, H, W, C]`, grey or in colour.
        name: One of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: Of the noise.
        positions: `[B]`, positions of the images in their set; by default 0 to B - 1.

    Returns:
        float32 `[B, H, W, C]` in [0, 1].

    References:
        Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
        ICLR 2019, https://arxiv.org/abs/1903.12261

    >>> corrupt(np.full((1, 2, 2, 1), 0.5), "brightness", 5).ravel().round(1).astype(str).tolist()
    ['0.8', '0.8', '0.8', '0.8']
    """
    small, large = _PARAMETERS[name]
    parameter = (large if min(images.shape[1:3]) >= _LARGE else small)[severity - 1]
    rows = []
    for image, position in zip(images, range(len(images)) if positions is None else positions, strict=True):
        rng = np.random.default_rng([seed, zlib.crc32(name.encode()), severity, int(position)])
        rows.append(np.clip(_FUNCTIONS[name](np.asarray(image, np.float64), parameter, rng), 0, 1).astype(np.float32))
    return np.stack(rows)


def _shot_noise(image, photons, rng):
    return rng.poisson(image * photons) / photons


def _impulse_noise(image, share, rng):
    hit, salt = rng.random(image.shape) < share, rng.random(image.shape) < 0.5
    return np.where(hit, salt, image)


def _gaussian_blur(image, sigma, rng):
    import scipy.ndimage

    return scipy.ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest")


def _brightness(image, more, rng):
    # The value of HSV, the largest channel, grows; hue and saturation stay.
    value = image.max(-1, keepdims=True)
    brighter = np.clip(value + more, 0, 1)
    return np.where(value > 0, image * brighter / np.where(value > 0, value, 1), brighter)


def _contrast(image, factor, rng):
    mean = image.mean((0, 1), keepdims=True)
    return factor * (image - mean) + mean


def _to_pillow(image):
    import PIL.Image

    grey_levels = np.round(255 * image).astype(np.uint8)
    return PIL.Image.fromarray(grey_levels[..., 0] if image.shape[-1] == 1 else grey_levels)


def _of_pillow(image, shape):
    return np.asarray(image, np.float64).reshape(shape) / 255


def _pixelate(image, factor, rng):
    import PIL.Image

    height, width = image.shape[:2]
    smaller = max(1, int(factor * width)), max(1, int(factor * height))
    found = _to_pillow(image).resize(smaller, PIL.Image.Resampling.BOX)
    return _of_pillow(found.resize((width, height), PIL.Image.Resampling.BOX), image.shape)


def _jpeg(image, quality, rng):
    import PIL.Image

    buffer = io.BytesIO()
    _to_pillow(image).save(buffer, "JPEG", quality=quality)
    return _of_pillow(PIL.Image.open(buffer), image.shape)


_FUNCTIONS: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "gaussian_noise": lambda image, sigma, rng: image + sigma * rng.standard_normal(image.shape),
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "gaussian_blur": _gaussian_blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "pixelate": _pixelate,
    "jpeg": _jpeg,
}


def score_corrupted(
    model: ShardedModel, images: np.ndarray, labels: np.ndarray, *, seed: int, batch_size: int,
    devices: Sequence[jax.Device], state: EvaluationState, progress_fn: Callable[[int], Any] = lambda images: None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Returns for each corruption which images are classified correctly at each severity, bool `[5, N]`.

    Args:
        model: The model.
        images: uint8 or float `[N, H, W, C]`.
        labels: `[N]`.
        seed: Of the noise.
        batch_size: Images at once, over all devices.
        devices: The devices.
        state: Saved state of a stopped evaluation; continued and updated.
        progress_fn: Called with the number of images that were scored.
    """
    width, count = batch_width(batch_size, len(labels), devices), len(labels)
    found: dict[str, np.ndarray] = {}
    for name in CORRUPTIONS:
        rows = []
        for severity in SEVERITIES:
            correct, done = state.part(f"{name} {severity}: {model.name}", count)
            for indices, mask in batching.padded_batches(count, width):
                if not done[indices].all():
                    corrupted = corrupt(take(images, indices), name, severity, seed=seed, positions=indices)
                    batch = parallel.shard_tree((corrupted, labels[indices].astype(np.int32)), devices)
                    correct[indices[mask]] = model.score(*batch)[0][mask]
                    done[indices] = True  # Set last, so that an interruption before it repeats the batch.
                    state.save()
                progress_fn(int(mask.sum()))
            rows.append(correct)
        found[name] = np.stack(rows)
    state.flush()
    return found
