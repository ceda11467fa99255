"""Reads a prepared data set into arrays, without TensorFlow."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import PIL.Image
from absl import logging

from robust_gan.data.parsing import check_labels
from robust_gan.errors import DataError, one_line

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_CHUNK = 1000


class Split(NamedTuple):
    """Images in memory.

    Attributes:
        images: uint8 `[N, H, W, C]`.
        labels: int32 `[N]` in 0..K-1.
    """

    images: np.ndarray
    labels: np.ndarray


class PreparedSet(NamedTuple):
    """An open prepared image classification set.

    Attributes:
        builder: The builder of TensorFlow Datasets.
        image_key: The name of the feature that is the image.
        label_key: The name of the feature that is the label.
    """

    builder: "tfds.core.DatasetBuilder"
    image_key: str
    label_key: str

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the K classes."""
        return tuple(self.builder.info.features[self.label_key].names)

    @property
    def split_sizes(self) -> dict[str, int]:
        """Number of images of each split."""
        return {split: int(info.num_examples) for split, info in self.builder.info.splits.items()}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppresses the messages of TensorFlow Datasets on stdout and, below `--verbosity=1`, in the log of absl."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING if verbosity == logging.INFO else verbosity)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


@quiet()
def open_prepared(prepared: Path) -> PreparedSet:
    """Opens a prepared data set.

    Args:
        prepared: Its folder, DATA_DIR/NAME[/CONFIG]/VERSION, in the format array_record.

    Raises:
        DataError: It is damaged, or has no uint8 image and class label.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(prepared)
        features, supervised = builder.info.features, builder.info.supervised_keys
        kinds = dict(features.items())
    # Damaged descriptions raise many kinds of exceptions (json, protobuf, KeyError, ImportError).
    except Exception as error:
        raise _damaged(prepared, error) from error
    images = [key for key, feature in kinds.items() if isinstance(feature, tfds.features.Image)]
    labels = [key for key, feature in kinds.items() if isinstance(feature, tfds.features.ClassLabel)]
    if supervised and len(supervised) == 2 and supervised[0] in images and supervised[1] in labels:
        images, labels = [supervised[0]], [supervised[1]]
    if len(images) != 1 or len(labels) != 1:
        raise DataError(
            f"{prepared} must have one image and one class label to be an image classification set, "
            f"but its features are {', '.join(kinds)}"
        )
    if kinds[images[0]].np_dtype != np.uint8 or kinds[images[0]].shape[-1] not in _MODES:
        raise DataError(f"{prepared} must hold uint8 images of 1, 3 or 4 channels, but has {kinds[images[0]]}")
    return PreparedSet(builder, images[0], labels[0])


@quiet()
def read_split(prepared: PreparedSet, split: str, positions: np.ndarray | None = None) -> Split:
    """Reads and decodes the images of a split.

    Args:
        prepared: From `open_prepared`.
        split: The name of the split.
        positions: Positions of the images; None for all.

    Raises:
        DataError: A file is missing or damaged, a label is out of range, or the images differ in shape.
    """
    import tensorflow_datasets as tfds

    feature = prepared.builder.info.features[prepared.image_key]
    folder = Path(prepared.builder.data_dir)
    if positions is None:
        positions = np.arange(prepared.split_sizes[split])
    images, labels = None, np.empty(len(positions), np.int64)
    try:
        source = prepared.builder.as_data_source(
            split, decoders={prepared.image_key: tfds.decode.SkipDecoding()}, file_format="array_record"
        )
        for start in range(0, len(positions), _CHUNK):
            # Reading them one by one takes seven times as long.
            records = source.__getitems__(positions[start : start + _CHUNK].tolist())
            for number, record in enumerate(records, start):
                image = _decode(record[prepared.image_key], feature.shape[-1])
                if images is None:
                    images = np.empty((len(positions), *image.shape), np.uint8)
                if image.shape != images.shape[1:]:
                    raise DataError(
                        f"all images must have one shape, but the split {split} of {folder} holds "
                        f"{images.shape[1:]} and {image.shape}"
                    )
                images[number] = image
                labels[number] = record[prepared.label_key]
    except DataError:
        raise
    # array_record and Pillow raise many kinds of exceptions for damaged files.
    except Exception as error:
        raise _damaged(folder, error) from error
    check_labels(labels, len(prepared.label_names), f"the split {split} of {folder}")
    if images is None:
        images = np.empty((0, *(size or 0 for size in feature.shape)), np.uint8)
    return Split(images, labels.astype(np.int32))


def _decode(encoded: bytes, channels: int) -> np.ndarray:
    """Decodes as the stock reader does, without its advice to install OpenCV."""
    with PIL.Image.open(io.BytesIO(encoded)) as image:
        mode = _MODES[channels]
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels[..., None] if channels == 1 else pixels


def _damaged(folder: Path, error: Exception) -> DataError:
    return DataError(f"{folder} is damaged ({one_line(error)}): remove it and prepare the data set again")
