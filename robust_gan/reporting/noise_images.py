"""The generator's noise on a few fixed images in the course of training, as PNG files in the workdir."""

import io
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
from etils import epath

from robust_gan.errors import UserError
from robust_gan.storage import workdir

FOLDER = "noise"
SHOWN = 8
"""Number of images, each of another class."""

_CLEAN, _COUNT = "images.png", "count"


class NoiseImages(NamedTuple):
    """The noise images of a run.

    Attributes:
        images: `[E, H, W, C]` in [0, 1], clean.
        noise: For each validated step `[E, H, W, C]` in [-1, 1].
    """

    images: np.ndarray
    noise: dict[int, np.ndarray]


def get_noise(adversarial: np.ndarray, images: np.ndarray, epsilon: float) -> np.ndarray:
    """Returns perturbations in units of epsilon, in [-1, 1].

    Args:
        adversarial: `[E, H, W, C]`.
        images: `[E, H, W, C]`, clean.
        epsilon: Radius.

    >>> get_noise(np.full((1, 1, 1, 1), 0.5), np.full((1, 1, 1, 1), 0.25), 0.5).item()
    0.5
    """
    return np.clip((adversarial - images) / epsilon, -1, 1)


def concatenate(images: np.ndarray) -> np.ndarray:
    """Concatenates images horizontally: `[E, H, W, C]` to `[H, E W, C]`, with one or three channels.

    >>> concatenate(np.zeros((8, 4, 5, 2))).shape
    (4, 40, 1)
    """
    if images.shape[-1] not in (1, 3):
        images = images.mean(axis=-1, keepdims=True)
    return np.concatenate(list(images), axis=1)


def write(folder: epath.Path, step: int, images: np.ndarray, noise: np.ndarray) -> None:
    """Writes the noise of a step, and the clean images if they are not written yet.

    Args:
        folder: The workdir.
        step: Steps taken.
        images: `[E, H, W, C]` in [0, 1].
        noise: `[E, H, W, C]` in [-1, 1].

    >>> folder = epath.Path(getfixture("tmp_path"))
    >>> write(folder, 50, np.zeros((2, 3, 4, 1)), np.ones((2, 3, 4, 1)))
    >>> read(folder).noise[50].shape
    (2, 3, 4, 1)
    """
    (folder / FOLDER).mkdir(exist_ok=True)
    if not (folder / FOLDER / _CLEAN).exists():
        workdir.write_bytes(folder / FOLDER / _CLEAN, _png(images, len(images)))
    workdir.write_bytes(folder / FOLDER / f"{step:08d}.png", _png((noise + 1) / 2, len(noise)))


def read(folder: epath.Path) -> NoiseImages | None:
    """Reads the noise images of a run; returns None if there are none, as without a generator.

    Raises:
        UserError: An image is damaged.

    >>> read(epath.Path(getfixture("tmp_path"))) is None
    True
    """
    if not (folder / FOLDER / _CLEAN).exists():
        return None
    steps: Mapping[int, epath.Path] = {
        int(path.stem): path for path in (folder / FOLDER).iterdir() if re.fullmatch(r"\d+\.png", path.name)
    }
    return NoiseImages(_read(folder / FOLDER / _CLEAN), {step: 2 * _read(steps[step]) - 1 for step in sorted(steps)})


def _png(images: np.ndarray, count: int) -> bytes:
    pixels = np.rint(255 * np.clip(concatenate(images), 0, 1)).astype(np.uint8)
    notes = PIL.PngImagePlugin.PngInfo()
    notes.add_text(_COUNT, str(count))
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG", pnginfo=notes)
    return buffer.getvalue()


def _read(path: epath.Path) -> np.ndarray:
    try:
        with PIL.Image.open(io.BytesIO(path.read_bytes())) as picture:
            pixels = np.asarray(picture, np.float32) / 255
            count = int(picture.info[_COUNT])
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        return np.stack(np.split(pixels, count, axis=1))
    except (OSError, ValueError, KeyError, SyntaxError) as error:  # Pillow raises SyntaxError for some damage.
        raise UserError(f"{path} is damaged ({error}): remove it") from error
