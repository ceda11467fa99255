"""Reads a prepared data set into arrays, without TensorFlow."""

import contextlib
import functools
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import PIL.Image
from absl import logging

from robust_gan.data.parsing import check_labels
from robust_gan.data.streaming import StreamedImages, is_large, threads
from robust_gan.errors import DataError, one_line

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_CHUNK = 1000


class Split(NamedTuple):
    """Images and labels.

    Attributes:
        images: uint8 `[N, H, W, C]`, or `streaming.StreamedImages`.
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


def read_split(prepared: PreparedSet, split: str, positions: np.ndarray | None = None) -> Split:
    """Reads and decodes the images of a split.

    Args:
        prepared: From `open_prepared`.
        split: The name of the split.
        positions: Positions of the images; None for all.

    Raises:
        DataError: A file is missing or damaged, a label is out of range, or the images differ in shape.
    """
    return _open_split(prepared, split, positions, in_memory=True)


def open_split(prepared: PreparedSet, split: str, positions: np.ndarray | None = None) -> Split:
    """Reads a split as `read_split` does; images larger than `streaming.MAX_IN_MEMORY` are `StreamedImages`.

    Raises:
        DataError: See `read_split`; of images that are streamed, when they are used.
    """
    return _open_split(prepared, split, positions, in_memory=False)


@quiet()
def _open_split(prepared: PreparedSet, split: str, positions: np.ndarray | None, in_memory: bool) -> Split:
    import tensorflow_datasets as tfds

    if positions is None:
        positions = np.arange(prepared.split_sizes[split])
    feature, labels = prepared.builder.info.features[prepared.image_key], np.empty(len(positions), np.int64)
    with _refuse_damage(prepared):
        source = prepared.builder.as_data_source(
            split, decoders={prepared.image_key: tfds.decode.SkipDecoding()}, file_format="array_record"
        )
        shape = tuple(size or 0 for size in feature.shape)
        if len(positions):
            shape = _decode(source[int(positions[0])][prepared.image_key], feature.shape[-1]).shape
    read = functools.partial(_read, prepared, f"the split {split}", source, shape)
    images: Any = StreamedImages(read, positions, shape)
    if in_memory or not is_large(len(positions), shape):
        images = read(positions, labels)
    else:
        read(positions, labels, decodes=False)
    check_labels(labels, len(prepared.label_names), f"the split {split} of {prepared.builder.data_dir}")
    return Split(images, labels.astype(np.int32))


def _read(
    prepared: PreparedSet, split: str, source: Any, shape: tuple[int, ...], positions: np.ndarray,
    labels: np.ndarray | None = None, decodes: bool = True,
) -> np.ndarray:  # fmt: skip
    """Returns the images at some positions, none where `decodes` is False; writes their labels."""
    images = np.empty((len(positions) if decodes else 0, *shape), np.uint8)
    decode = functools.partial(_decode, channels=shape[-1])
    with _refuse_damage(prepared):
        for start in range(0, len(positions), _CHUNK):
            # Reading them one by one takes seven times as long.
            records = source.__getitems__(positions[start : start + _CHUNK].tolist())
            if labels is not None:
                labels[start : start + len(records)] = [record[prepared.label_key] for record in records]
            encoded = [record[prepared.image_key] for record in records if decodes]
            for number, image in enumerate(threads().map(decode, encoded), start):
                if image.shape != shape:
                    raise DataError(
                        f"all images must have one shape, but {split} of {prepared.builder.data_dir} holds "
                        f"{shape} and {image.shape}"
                    )
                images[number] = image
    return images


def _decode(encoded: bytes, channels: int) -> np.ndarray:
    """Decodes as the stock reader does, without its advice to install OpenCV."""
    with PIL.Image.open(io.BytesIO(encoded)) as image:
        mode = _MODES[channels]
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels[..., None] if channels == 1 else pixels


@contextlib.contextmanager
def _refuse_damage(prepared: PreparedSet) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    # array_record and Pillow raise many kinds of exceptions for damaged files.
    except Exception as error:
        raise _damaged(Path(prepared.builder.data_dir), error) from error


def _damaged(folder: Path, error: Exception) -> DataError:
    return DataError(f"{folder} is damaged ({one_line(error)}): remove it and prepare the data set again")
