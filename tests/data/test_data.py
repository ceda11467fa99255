import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from robust_gan import data
from robust_gan.config import DataConfig
from robust_gan.data import published
from robust_gan.data.augmentation import AUGMENTATIONS, augment, crop_and_flip, random_crop, to_unit
from robust_gan.data.batching import padded_batches
from robust_gan.data.locations import data_directory, prepared_names
from robust_gan.data.order import batch_indices, permutation
from robust_gan.errors import DataError

ROOT = Path(__file__).parents[2]


def write_set(directory, splits, *, name="tiny", config=None, num_classes=3, shape=(4, 4, 1), features=None):
    """Prepares a set of the given splits `{split: (images, labels)}` as anyone would with TensorFlow Datasets."""
    builder_configs = [tfds.core.BuilderConfig(name=config)] if config else []

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.2.0")
        BUILDER_CONFIGS = builder_configs

        def _info(self):
            chosen = features or {
                "image": tfds.features.Image(shape=shape),
                "label": tfds.features.ClassLabel(num_classes=num_classes),
            }
            info = tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(chosen))
            info.initialize_from_bucket = lambda: None
            return info

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(*arrays) for split, arrays in splits.items()}

        def _generate_examples(self, images, labels):
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                image = PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
                yield number, {"image": image, "label": int(label)} | ({"text": "x"} if features else {})

    Tiny.name = name
    builder = Tiny(data_dir=directory)
    builder.download_and_prepare(file_format="array_record")
    return Path(builder.data_dir)


def numbered(start, count, num_classes=3):
    """Images that say which they are."""
    numbers = np.arange(start, start + count)
    images = np.broadcast_to(numbers[:, None, None, None], (count, 4, 4, 1)).astype(np.uint8)
    return images, numbers % num_classes


def numbers_of(split):
    return split.images[:, 0, 0, 0].tolist()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    write_set(directory, {"train": numbered(0, 40), "test": numbered(100, 10), "extra": numbered(200, 20)})
    return directory


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    directory = tmp_path_factory.mktemp("digits")
    return directory, data.load("digits", data_dir=directory, validation_size=137)


def refused(name, directory, *, validation_size=2, **options):
    with pytest.raises(DataError) as caught:
        data.load(name, data_dir=directory, validation_size=validation_size, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Order


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    num_images=st.integers(1, 40),
    batch_size=st.integers(1, 100),
    epoch=st.integers(0, 5),
)
def test_every_epoch_sees_every_image_exactly_once(seed, num_images, batch_size, epoch):
    steps = -(-num_images * (epoch + 1) // batch_size)
    seen = np.concatenate([batch_indices(seed, step, batch_size, num_images) for step in range(steps)])
    of_epoch = seen[num_images * epoch : num_images * (epoch + 1)]
    np.testing.assert_array_equal(np.sort(of_epoch), np.arange(num_images))


@settings(deadline=None)
@given(step=st.integers(0, 10**12))
def test_a_batch_is_a_function_of_seed_and_step_alone(step):
    first = batch_indices(3, step, 64, 1000)
    for other in range(10):
        batch_indices(other, step + other, 64, 1000)
    second = batch_indices(3, step, 64, 1000)
    assert first.shape == (64,)
    assert first.dtype == np.int32
    np.testing.assert_array_equal(first, second)


def test_epochs_and_seeds_have_different_orders():
    orders = [batch_indices(seed, epoch, 100, 100).tolist() for seed in range(3) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 9


def test_the_order_is_the_same_for_ever():
    assert permutation(10, seed=1, stream=2).tolist() == [4, 2, 0, 6, 1, 5, 9, 8, 7, 3]


def test_every_place_is_equally_likely():
    places = np.stack([np.argsort(permutation(5, seed=0, stream=epoch)) for epoch in range(5000)])
    counts = np.stack([np.bincount(column, minlength=5) for column in places.T])
    assert np.abs(counts - 1000).max() < 150  # Five standard deviations are 141.


@pytest.mark.parametrize(("seed", "step", "batch_size", "num_images"), [(-1, 0, 1, 1), (2**64, 0, 1, 1), (0, -1, 1, 1)])
def test_order_out_of_range(seed, step, batch_size, num_images):
    with pytest.raises(ValueError, match="must be"):
        batch_indices(seed, step, batch_size, num_images)


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (-3, 5)])
def test_sizes_out_of_range(sizes):
    with pytest.raises(ValueError, match="at least 1"):
        batch_indices(0, 0, *sizes)
    with pytest.raises(ValueError, match="at least 1"):
        list(padded_batches(*sizes))


# Batching


def count_in_batches(num_images, batch_size):
    counts = np.zeros(num_images, int)
    for indices, mask in padded_batches(num_images, batch_size):
        assert indices.shape == mask.shape == (batch_size,)
        assert (indices.dtype, mask.dtype) == (np.int32, np.bool_)
        assert indices.min() >= 0
        assert indices.max() < num_images
        np.add.at(counts, indices[mask], 1)
    return counts


def test_every_image_counts_exactly_once():
    assert (count_in_batches(10_007, 64) == 1).all()


@settings(deadline=None)
@given(num_images=st.integers(1, 300), batch_size=st.integers(1, 400))
def test_every_image_counts_exactly_once_in_any_batches(num_images, batch_size):
    assert (count_in_batches(num_images, batch_size) == 1).all()


# Augmentation


def test_to_unit_is_the_division_by_255():
    values = np.arange(256, dtype=np.uint8)
    scaled = np.asarray(jax.jit(to_unit)(values))
    np.testing.assert_allclose(scaled, values.astype(np.float64) / 255, rtol=0, atol=1.2e-7)
    assert scaled.dtype == np.float32
    assert scaled.min() == 0
    assert scaled.max() == 1


def test_to_unit_refuses_what_is_scaled_already():
    with pytest.raises(TypeError, match="float32"):
        to_unit(jnp.zeros((2, 4, 4, 1)))


def reference(keys, images, padding, flip):
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = images.shape[1:3]
    result = []
    for key, image in zip(keys, padded, strict=True):
        crop_key, flip_key = jax.random.split(key)
        row, column = np.asarray(jax.random.randint(crop_key, (2,), -padding, padding + 1)) + padding
        crop = image[row : row + height, column : column + width]
        result.append(crop[:, ::-1] if flip and jax.random.bernoulli(flip_key) else crop)
    return np.stack(result)


@pytest.mark.slow
@pytest.mark.parametrize("padding", [0, 2, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_crop_and_flip_equals_the_numpy_reference(padding, dtype):
    keys = jax.random.split(jax.random.key(7), 24)
    images = np.random.default_rng(0).integers(1, 256, (24, 6, 5, 3)).astype(dtype)
    for function, flip in ((crop_and_flip, True), (random_crop, False)):
        augmented = jax.jit(function, static_argnames="padding")(keys, images, padding=padding)
        assert augmented.dtype == dtype
        np.testing.assert_array_equal(augmented, reference(keys, images, padding, flip))


@pytest.mark.slow
def test_augmentation_does_not_depend_on_the_batch():
    keys = jax.random.split(jax.random.key(1), 12)
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), np.uint8)
    whole = crop_and_flip(keys, images)
    pieces = [crop_and_flip(keys[start : start + 5], images[start : start + 5]) for start in range(0, 12, 5)]
    np.testing.assert_array_equal(whole, np.concatenate(pieces))


def test_all_places_and_both_sides_occur_equally_often():
    # A single bright pixel shows where the crop was taken, and a gradient whether it was flipped.
    image = np.zeros((9, 9, 1), np.uint8)
    image[4, 4], image[4, 5] = 200, 100
    augmented = np.asarray(crop_and_flip(jax.random.split(jax.random.key(2), 5000), np.stack([image] * 5000)))
    places = np.argwhere(augmented[..., 0] == 200)[:, 1:]
    flipped = np.take_along_axis(augmented[np.arange(5000), places[:, 0], :, 0], places[:, 1:] - 1, 1)[:, 0] == 100
    counts = np.zeros((5, 5), int)
    np.add.at(counts, tuple((places - 2).T), 1)
    assert abs(flipped.mean() - 0.5) < 0.036  # Five standard deviations.
    assert np.abs(counts - 200).max() < 5 * np.sqrt(200)


def test_augment_by_name():
    keys, images = jax.random.split(jax.random.key(0), 3), jnp.ones((3, 8, 8, 1))
    assert AUGMENTATIONS == ("none", "crop_flip", "crop")
    assert augment("none", keys, images) is images
    np.testing.assert_array_equal(augment("crop", keys, images, 3), random_crop(keys, images, padding=3))
    np.testing.assert_array_equal(augment("crop_flip", keys, images, 3), crop_and_flip(keys, images, padding=3))
    with pytest.raises(ValueError, match="none, crop_flip, crop, but is 'flip'"):
        augment("flip", keys, images)
    with pytest.raises(ValueError, match="-1"):
        augment("crop", keys, images, -1)
    with pytest.raises(ValueError, match="one key for each of the 3 images"):
        augment("crop", keys[:2], images)
    with pytest.raises(ValueError, match="one key for each of the 3 images"):
        augment("crop", keys[0], images)


# Loading


def test_digits(digits):
    _, loaded = digits
    assert loaded.train.images.shape == (1300, 8, 8, 1)
    assert loaded.validation.images.shape == (137, 8, 8, 1)
    assert loaded.test.images.shape == (360, 8, 8, 1)
    assert (loaded.num_classes, loaded.label_names) == (10, tuple("0123456789"))
    for split in (loaded.train, loaded.validation, loaded.test):
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
        assert split.images.max() == 255
    assert set(np.bincount(loaded.test.labels)) <= {34, 35, 36, 37}  # Each class has 174 to 183 images.


def test_digits_are_those_of_scikit_learn(digits):
    from sklearn.datasets import load_digits

    _, loaded = digits
    bunch = load_digits()
    expected = sorted((*np.rint(i * 255 / 16).astype(int).ravel(), y) for i, y in zip(bunch.images, bunch.target))  # noqa: B905
    found = [
        (*image.ravel().tolist(), label)
        for split in (loaded.train, loaded.validation, loaded.test)
        for image, label in zip(split.images, split.labels.tolist(), strict=True)
    ]
    np.testing.assert_array_equal(sorted(found), expected)


def test_train_and_validation_share_no_image_and_lose_none(tiny):
    loaded = data.load("tiny", data_dir=tiny, validation_size=15)
    train, validation = numbers_of(loaded.train), numbers_of(loaded.validation)
    assert (len(train), len(validation)) == (25, 15)
    assert sorted(train + validation) == list(range(40))
    assert sorted(numbers_of(loaded.test)) == list(range(100, 110))
    for split in (loaded.train, loaded.validation, loaded.test):
        np.testing.assert_array_equal(split.labels, split.images[:, 0, 0, 0] % 3)


def test_validation_images_are_always_the_same(tiny):
    first, again = (data.load("tiny", data_dir=tiny, validation_size=15) for _ in range(2))
    other = data.load("tiny", data_dir=tiny, validation_size=15, seed=1)
    small = data.load("tiny", data_dir=tiny, validation_size=15, train_size=5, extra_size=3)
    assert numbers_of(first.validation) == numbers_of(again.validation) == numbers_of(small.validation)
    assert numbers_of(first.validation) != numbers_of(other.validation)


def test_train_size_and_extra_size(tiny):
    small, large = (
        numbers_of(data.load("tiny", data_dir=tiny, validation_size=10, train_size=size).train) for size in (5, 20)
    )
    assert (len(small), len(large)) == (5, 20)
    assert set(small) < set(large)
    extra = numbers_of(data.load("tiny", data_dir=tiny, validation_size=10, train_size=5, extra_size=7).train)
    assert extra[:5] == small
    assert len(set(extra[5:])) == 7
    assert set(extra[5:]) <= set(range(200, 220))


def test_the_data_of_a_configuration(tiny):
    config = DataConfig(name="tiny", data_dir=str(tiny), validation_size=10, train_size=5, extra_size=7)
    found = data.from_config(config)
    expected = data.load("tiny", data_dir=tiny, validation_size=10, train_size=5, extra_size=7)
    for split in ("train", "validation", "test"):
        assert numbers_of(getattr(found, split)) == numbers_of(getattr(expected, split))
    everything = data.from_config(DataConfig(name="tiny", data_dir=str(tiny), validation_size=10))
    assert len(numbers_of(everything.train)) == 30


def test_no_validation(tiny):
    loaded = data.load("tiny", data_dir=tiny, validation_size=0)
    assert loaded.validation.images.shape == (0, 4, 4, 1)
    assert sorted(numbers_of(loaded.train)) == list(range(40))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"validation_size": 40}, "validation_size must be in 0..39 for tiny, but is 40"),
        ({"validation_size": -1}, "but is -1"),
        ({"train_size": 39}, "train_size must be in 1..38 for tiny with validation_size=2, but is 39"),
        ({"train_size": 0}, "but is 0"),
        ({"extra_size": 21}, "extra_size must be in 0..20 for tiny"),
        ({"extra_size": -1}, "but is -1"),
    ],
)
def test_sizes_that_do_not_fit(tiny, options, says):
    assert says in refused("tiny", tiny, **options)


def test_the_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.delenv("ROBUST_GAN_DATA_DIR", raising=False)
    assert data_directory() == tmp_path / "tfds"
    monkeypatch.setenv("ROBUST_GAN_DATA_DIR", str(tmp_path / "ours"))
    assert data_directory() == tmp_path / "ours"
    assert data_directory("~/x") == Path.home() / "x"
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.delenv("ROBUST_GAN_DATA_DIR")
    assert data_directory() == Path.home() / "tensorflow_datasets"


def test_configurations_and_versions(tmp_path):
    splits = {"train": numbered(0, 8), "validation": numbered(50, 4)}
    write_set(tmp_path, splits, config="a")
    assert numbers_of(data.load("tiny", data_dir=tmp_path, validation_size=2).test)
    assert data.is_prepared("tiny/a:1.2.0", tmp_path)
    assert not data.is_prepared("tiny/a:1.3.0", tmp_path)
    write_set(tmp_path, splits, config="b")
    assert "name one of tiny/a, tiny/b" in refused("tiny", tmp_path)
    assert sorted(numbers_of(data.load("tiny/b", data_dir=tmp_path, validation_size=2).test)) == list(range(50, 54))
    assert prepared_names(tmp_path) == ["tiny/a", "tiny/b"]


def test_colour_images_of_unstated_shape(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (9, 5, 7, 3), np.uint8)
    write_set(tmp_path, {"train": (images, [0] * 9), "test": (images, [1] * 9)}, shape=(None, None, 3))
    loaded = data.load("tiny", data_dir=tmp_path, validation_size=0)
    assert sorted(loaded.test.images.tolist()) == sorted(images.tolist())


def test_images_of_different_shapes(tmp_path):
    small, large = np.zeros((4, 4, 4, 3), np.uint8), np.zeros((4, 5, 4, 3), np.uint8)
    write_set(tmp_path, {"train": ([*small, *large], [0] * 8), "test": (small, [0] * 4)}, shape=(None, None, 3))
    assert "all images must have one shape" in refused("tiny", tmp_path)
    write_set(tmp_path / "b", {"train": (large, [0] * 4), "test": (small, [0] * 4)}, shape=(None, None, 3))
    assert "all images of tiny must have one shape" in refused("tiny", tmp_path / "b")


def test_labels_out_of_range(tmp_path):
    write_set(tmp_path, {"train": numbered(0, 8), "test": (numbered(0, 4)[0], [0, 1, -1, 2])})
    assert "labels must be in 0..2" in refused("tiny", tmp_path)


@pytest.mark.parametrize(
    ("features", "says"),
    [
        ({"image": tfds.features.Image(shape=(4, 4, 1)), "label": tfds.features.Scalar(np.int64)}, "one class label"),
        (
            {
                "image": tfds.features.Image(shape=(4, 4, 1), dtype=np.uint16),
                "label": tfds.features.ClassLabel(num_classes=3),
            },
            "uint8",
        ),
    ],
)
def test_what_is_no_image_classification_set(tmp_path, features, says):
    features = {**features, "text": tfds.features.Text()}
    write_set(tmp_path, {"train": numbered(0, 8), "test": numbered(0, 8)}, features=features)
    assert says in refused("tiny", tmp_path)


def test_no_test_images(tmp_path):
    write_set(tmp_path, {"train": numbered(0, 8)})
    assert "needs images in the splits train and test" in refused("tiny", tmp_path)


def test_unknown_and_unprepared_sets(tiny, monkeypatch):
    monkeypatch.setenv("ROBUST_GAN_DATA_DIR", str(tiny))
    assert refused("imagenet", tiny).endswith("there may be cifar10, cifar100, digits, mnist, svhn_cropped, tiny")
    assert refused("mnist", None).endswith(f"in {tiny}: run robust-gan-prepare-data --dataset=mnist")
    assert refused("mnist", tiny / "b").endswith(f"--dataset=mnist --data_dir={tiny / 'b'}")


@pytest.mark.parametrize("name", ["../tiny", "tiny/..", "tiny/../tiny", "tiny\n", "-tiny", "tiny:1"])
def test_names_that_are_none(tiny, name):
    assert "a data set is called" in refused(name, tiny)


def test_a_set_stored_for_tensorflow(tmp_path):
    prepared = write_set(tmp_path, {"train": numbered(0, 8), "test": numbered(0, 8)}, name="mnist")
    info = json.loads((prepared / "dataset_info.json").read_text())
    (prepared / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    says = refused("mnist", tmp_path)
    assert "not stored as array_record" in says
    assert says.endswith(f"--dataset=mnist --data_dir={tmp_path}/array_record")
    assert not data.is_prepared("mnist", tmp_path)
    with pytest.raises(DataError, match="without TensorFlow"):
        data.prepare("mnist", data_dir=tmp_path)


def damage_cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_bytes(path):
    contents = np.frombuffer(path.read_bytes(), np.uint8).copy()
    used = np.flatnonzero(contents)  # Files are padded with zeros.
    contents[used[len(used) // 4 : len(used) // 2]] ^= 0x55
    path.write_bytes(contents.tobytes())


@pytest.mark.parametrize("damage", [damage_cut, damage_bytes, Path.unlink])
@pytest.mark.parametrize("file", ["tiny-train.array_record-00000-of-00001", "dataset_info.json", "features.json"])
def test_damaged_files(tmp_path, damage, file):
    prepared = write_set(tmp_path, {"train": numbered(0, 40), "test": numbered(0, 8)})
    damage(prepared / file)
    assert str(tmp_path) in refused("tiny", tmp_path)


def run(code, **environment):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code], env=environment, text=True, stdout=-1, stderr=-1, cwd="/"
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out, err


@pytest.mark.packaging
def test_loading_never_imports_tensorflow(digits):
    directory, _ = digits
    code = (
        "import sys, robust_gan.data as data; assert 'tensorflow_datasets' not in sys.modules;"
        "print(len(data.load('digits', validation_size=137).train.labels), 'tensorflow' in sys.modules)"
    )
    assert finish(run(code, ROBUST_GAN_DATA_DIR=str(directory))) == ("1300 False\n", "")


@pytest.mark.slow
def test_two_processes_prepare_at_once(tmp_path):
    code = "import robust_gan.data as data; print(len(data.load('digits', validation_size=137).train.labels))"
    processes = [run(code, ROBUST_GAN_DATA_DIR=str(tmp_path)) for _ in range(2)]
    assert [finish(process)[0] for process in processes] == ["1300\n"] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits"]


def as_bytes(images, labels):
    return sorted(image.tobytes() + bytes([label]) for image, label in zip(images, labels.tolist(), strict=True))


@pytest.mark.skipif("ROBUST_GAN_RAW_DATA" not in os.environ, reason="ROBUST_GAN_RAW_DATA names no folder of raw data")
@pytest.mark.parametrize(("name", "folder"), [("mnist", "mnist"), ("cifar10", "cifar-10-batches-bin")])
def test_real_data_survive_to_the_last_pixel(tmp_path, name, folder):
    source = Path(os.environ["ROBUST_GAN_RAW_DATA"]) / folder
    if not source.is_dir():
        pytest.skip(f"no {source}")
    data.prepare(name, source=source, data_dir=tmp_path)
    loaded = data.load(name, data_dir=tmp_path, validation_size=5000)
    raw = published.contents(name, published.find(name, source))
    found = {
        "train": [np.concatenate(pair) for pair in zip(loaded.train, loaded.validation, strict=True)],
        "test": loaded.test,
    }
    for split, (images, labels) in found.items():
        expected = raw.splits[split]()
        assert as_bytes(images, labels) == as_bytes(expected.images, expected.labels["label"])


@pytest.mark.parametrize("splits", [{"train": 12, "test": 6}, {"test": 6}, {"validation": 6}], ids=str)
def test_what_is_scored_needs_no_other_split(splits, tmp_path):
    write_set(tmp_path, {name: numbered(100 * (name == "train"), count) for name, count in splits.items()})
    config = DataConfig("tiny", data_dir=str(tmp_path))
    images, labels = numbered(0, 6)
    scored = data.load_split(config, "test")
    assert np.array_equal(np.sort(scored.labels), np.sort(labels))
    assert sorted(map(bytes, scored.images)) == sorted(map(bytes, images))
    assert np.array_equal(data.load_split(config, "test", count=4).images, scored.images[:4])
    assert len(data.load_split(config, "test", count=40).labels) == 6
    if "train" in splits:
        assert len(data.load_split(config, "train", was_trained_on=False).labels) == 12
        with pytest.raises(DataError, match="too few to hold 180 of them out for validation: give the split test"):
            data.load_split(config, "validation", was_trained_on=False)
    else:
        with pytest.raises(DataError, match=r"tiny has no images to score as train: its splits are {'"):
            data.load_split(config, "train")


def test_a_split_to_score_is_the_one_of_training(tmp_path):
    write_set(tmp_path, {"train": numbered(0, 30), "test": numbered(40, 5)})
    config = DataConfig("tiny", data_dir=str(tmp_path), validation_size=8, train_size=10)
    loaded = data.from_config(config)
    for split in ("train", "validation", "test"):
        scored = data.load_split(config, split)
        assert np.array_equal(scored.images, getattr(loaded, split).images)
        assert np.array_equal(scored.labels, getattr(loaded, split).labels)
