"""TensorBoard (extra `tensorboard`): scalars, the noise on fixed images, histograms of perturbations, the config."""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from robust_gan.config import Config, to_dict
from robust_gan.reporting import noise_images

FOLDER = "tensorboard"


class TensorBoardWriter:
    """Writes event files into the folder of a run.

    Args:
        folder: Of the run.
        config: Shown as text.
    """

    def __init__(self, folder: epath.Path, config: Config) -> None:
        """Opens a file and writes the configuration."""
        import tensorboardX

        self._writer: Any = tensorboardX.SummaryWriter(os.fspath(folder / FOLDER))
        text = json.dumps(to_dict(config), indent=2)
        self._writer.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()), 0)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes numbers."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def perturbations(self, step: int, images: np.ndarray, noise: Mapping[str, np.ndarray]) -> None:
        """Writes histograms of what attacks do to fixed images, and the pictures of it.

        Args:
            step: Steps taken.
            images: `[E, H, W, C]` in [0, 1], clean.
            noise: For each attack `[E, H, W, C]` in [-1, 1]: perturbations in units of epsilon.
        """
        clean = noise_images.strip(images)
        for attack, made in noise.items():
            self._writer.add_histogram(f"perturbation/{attack}", made.ravel(), step)
            shown = np.concatenate([clean, (noise_images.strip(made) + 1) / 2])
            self._writer.add_image(
                f"perturbation/{attack}", np.rint(255 * shown).astype(np.uint8), step, dataformats="HWC"
            )

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()
