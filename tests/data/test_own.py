"""Data of one's own: an `.npz`, a pair of `.npy`, a folder; what is wrong with them is one sentence."""

import json

import jax
import numpy as np
import PIL.Image
import pytest

from robust_gan import data, evaluation, parallel, training
from robust_gan.config import AdversaryConfig, ClassifierConfig, Config, DataConfig, ValidationConfig
from robust_gan.data import array_files, own, streaming
from robust_gan.errors import DataError, UserError
from robust_gan.evaluation import EvaluationConfig, loading
from robust_gan.training import fitting, multi_step, setup

pytestmark = pytest.mark.usefixtures("tiny_names")


def make(count=60, classes=3, size=8, channels=3):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, size, size, channels), np.uint8), np.arange(count) % classes


def save(folder, **changes):
    images, labels = make()
    np.savez(folder / "a.npz", **{"images": images, "labels": labels} | changes)
    return str(folder / "a.npz")


def save_pair(folder):
    images, labels = make()
    np.save(folder / "x.npy", images)
    np.save(folder / "y.npy", labels)
    return f"{folder}/x.npy,{folder}/y.npy"


def save_folder(folder, sizes=((8, 8),), mode="RGB"):
    for index, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            shape = (*sizes[number % len(sizes)], 3)
            pixels = np.full(shape, 60 * index + number, np.uint8)
            PIL.Image.fromarray(pixels).convert(mode).save(folder / name / f"{number}.png")
    return str(folder)


def tiny(name, **settings):
    return Config(
        data=DataConfig(name=name, validation_size=8, augmentation="crop_flip", padding=1),
        classifier=ClassifierConfig(network="tiny"),
        adversary=AdversaryConfig(name="none"),
        batch_size=16,
        **{"num_steps": 6, "log_every": 2, "validation": ValidationConfig(every=3, pgd_steps=1), **settings},
    )


def train(config, directory, count=1, log_fn=lambda text: None):
    return training.train(
        config, directory, devices=parallel.find_devices(num_devices=count), progress=False, log_fn=log_fn
    )


def test_a_streamed_set_trains_to_the_bits_of_the_set_in_memory(tmp_path):
    in_memory = train(tiny(save(tmp_path)), tmp_path / "memory", 2).state
    streamed = train(tiny(save_pair(tmp_path), steps_per_call=3), tmp_path / "streamed", 2).state
    for left, right in zip(jax.tree.leaves(in_memory), jax.tree.leaves(streamed), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("form", ["folder", "prepared"])
def test_a_large_set_is_read_batch_by_batch(tmp_path, monkeypatch, form):
    """Images, order, checksums, splits and overlap are those of the set in memory, of any part in any order."""
    name, settings = "digits", {"data_dir": str(tmp_path)}
    if form == "folder":
        save_folder(tmp_path / "pets" / "train", ((8, 10), (9, 12)))
        save_folder(tmp_path / "pets" / "test", ((8, 10), (9, 12)))
        name, settings = str(tmp_path / "pets"), {"image_size": 6}
    config = DataConfig(name=name, validation_size=3, **settings)
    in_memory = data.from_config(config)
    monkeypatch.setattr(streaming, "MAX_IN_MEMORY", 100)
    streamed = data.from_config(config)
    assert isinstance(streamed.train.images, data.StreamedImages)
    assert isinstance(streamed.test.images, data.StreamedImages)
    assert data.find_overlap(streamed) == data.find_overlap(in_memory)
    assert bool(data.find_overlap(streamed)) == (form == "folder")
    for here, there in zip(in_memory[1:4], streamed[1:4], strict=True):
        rows = np.arange(len(here.labels))[::-2]
        np.testing.assert_array_equal(here.images[rows], there.images[rows])
        np.testing.assert_array_equal(here.labels, there.labels)
    found = data.load_split(config, "test", count=2)
    np.testing.assert_array_equal(found.images[:], in_memory.test.images[:2])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["folder", "prepared"])
def test_training_and_evaluation_do_not_depend_on_how_images_are_read(tmp_path, monkeypatch, form):
    name = save_folder(tmp_path / "pets") if form == "folder" else "digits"
    config = tiny(name)
    config.batch_size, config.data.data_dir = 4, str(tmp_path)
    config.data.validation_size = config.validation.size = 2
    found = []
    for size in (2**31, 10):
        monkeypatch.setattr(streaming, "MAX_IN_MEMORY", size)
        state = train(config, tmp_path / str(size), 2).state
        models = loading.from_checkpoints([str(tmp_path / str(size))])
        images = loading.load_data(models, EvaluationConfig())
        assert isinstance(images.images, data.StreamedImages) == (size == 10)
        found.append((state, array_files.take(images.images, np.arange(1))))
    for left, right in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.slow
def test_an_evaluation_of_streamed_images_is_that_of_the_images_in_memory():
    images, labels = make(12)
    weights = jax.random.normal(jax.random.key(0), (images[0].size, 3)) / 10
    streamed = streaming.StreamedImages(lambda positions: images[positions], np.arange(12), images.shape[1:])
    config, found = EvaluationConfig(epsilon=0.02, attacks="fgsm", sequential="fgsm,square10"), []
    for part in (images, streamed):
        of = evaluation.EvaluationData("x", "test", part, labels, ("0", "1", "2"))
        result = evaluation.evaluate({"linear": lambda x: x.reshape(len(x), -1) @ weights}, of, config)
        found.append((result.scores.robust, result.sequential["linear"].robust, result.alarms))
    np.testing.assert_equal(found[0], found[1])
    np.testing.assert_array_equal(np.asarray(streamed), images)


def test_a_streamed_folder_counts_damaged_files_when_it_meets_one(tmp_path, monkeypatch):
    folder = save_folder(tmp_path / "pets")
    for name in ("cat/1.png", "dog/2.png"):
        path = tmp_path / "pets" / name
        path.write_bytes(path.read_bytes()[:-30])
    monkeypatch.setattr(streaming, "MAX_IN_MEMORY", 100)
    images = own.read(folder).train.images
    assert images[:1].shape == (1, 8, 8, 3)
    with pytest.raises(DataError, match=r"2 of 8 files cannot be read as images, such as .*cat/1\.png \("):
        images[5:7]
    (tmp_path / "pets" / "cat" / "1.png").unlink()
    deep = np.full((8, 8), 4000, np.uint16)
    PIL.Image.fromarray(deep).save(tmp_path / "pets" / "dog" / "2.png")
    with pytest.raises(DataError, match=r"1 of 7 files .*dog/2\.png \(its pixels .* I;16, of more than 8 bits"):
        own.read(folder)


def test_a_streamed_call_holds_the_images_of_its_batches_alone(tmp_path):
    config = tiny(save_pair(tmp_path))
    devices = parallel.find_devices(num_devices=2)
    start = setup.build(config, devices)
    assert start.arrays == {}
    indices = multi_step.batch_indices(config, 2, 1, 1, len(start.dataset.train.labels), devices, start.streamed)
    whole = multi_step.batch_indices(config, 2, 1, 1, len(start.dataset.train.labels), devices)
    assert indices.arrays["images"].shape == (2, 8, 8, 8, 3)
    for device in range(2):
        named = start.dataset.train.images[whole.positions[device].ravel()]
        np.testing.assert_array_equal(indices.arrays["images"][device], named)
        assert indices.positions[device].ravel().tolist() == list(range(8))
    assert multi_step.steps_per_call(config, "gpu", start.streamed) == config.log_every
    large = start.streamed._replace(images=array_files.stream(np.zeros((1, 4096, 4096, 3), np.uint8), np.zeros(1, int)))
    assert multi_step.steps_per_call(config, "gpu", large) == 1


def test_the_splits_of_a_file_share_no_image_and_lose_none(tmp_path):
    images, labels = make(100)
    dataset = data.load(save(tmp_path, images=images, labels=labels), validation_size=10)
    parts = [part.images for part in (dataset.train, dataset.validation, dataset.test)]
    assert [len(part) for part in parts] == [70, 10, 20]
    found = np.concatenate(parts).reshape(100, -1)
    assert {row.tobytes() for row in found} == {row.tobytes() for row in images.reshape(100, -1)}
    assert dataset.notes == ("a.npz has no test images: 20 of its 100 images are held out for test, drawn with seed 0",)
    gaps = data.load(save(tmp_path, images=images, labels=5 * labels), validation_size=10)
    assert gaps.notes[1:] == ("a.npz has images of 3 of its 11 classes, 0 to 10",)
    (tmp_path / "pair").mkdir()
    pair = data.load(save_pair(tmp_path / "pair"), validation_size=10)
    np.testing.assert_array_equal(pair.test.images[:], data.load(save(tmp_path), validation_size=10).test.images)


def test_test_images_of_a_file_are_tested_on_and_shared_ones_counted(tmp_path):
    images, labels = make()
    path = save(tmp_path, images=images[:50], labels=labels[:50], test_images=images[45:], test_labels=labels[45:])
    dataset = data.load(path, validation_size=1)
    np.testing.assert_array_equal(dataset.test.images, images[45:])
    held_out = {image.tobytes() for image in dataset.validation.images}
    shared = sum(image.tobytes() not in held_out for image in images[45:50])
    assert data.find_overlap(dataset) == (
        f"warning: {shared} of the 15 test images of a.npz are among the training images",
    )
    for name, part in {"x": images[:50], "y": labels[:50], "u": images[45:], "v": labels[45:]}.items():
        np.save(tmp_path / f"{name}.npy", part)
    streamed = data.load(",".join(f"{tmp_path}/{name}.npy" for name in "xyuv"), validation_size=1)
    assert data.find_overlap(streamed) == (data.find_overlap(dataset)[0].replace("a.npz", "x.npy"),)


def test_a_folder_is_read_as_torchvision_reads_it(tmp_path):
    dataset = data.load(save_folder(tmp_path / "pets" / "train"), validation_size=1)
    assert dataset.label_names == ("cat", "dog")
    save_folder(tmp_path / "pets" / "val")
    found = own.read(str(tmp_path / "pets"))
    assert found.train.labels.tolist() == found.test.labels.tolist() == [0] * 4 + [1] * 4
    assert found.train.images[5].tolist() == np.full((8, 8, 3), 61).tolist()
    grey = own.read(save_folder(tmp_path / "grey", ((8, 10), (9, 12)), "L"), image_size=6)
    assert grey.train.images.shape == (8, 6, 6, 1)


BAD = {
    "one class": (lambda folder: save(folder, labels=np.full(60, 2)), r"all images of a\.npz are of class 2"),
    "names": (lambda folder: save(folder, labels=np.full(60, "cat")), r"class numbers from 0, numpy\.unique\(labels, "),
    "test shape": (
        lambda folder: save(folder, test_images=make(4, size=9)[0], test_labels=np.arange(4) % 3),
        r"must have one shape, but those of .* have \(8, 8, 3\) and those to test on \(9, 9, 3\)",
    ),
    "unknown test class": (
        lambda folder: save(folder, test_images=make(4)[0], test_labels=np.array([0, 1, 2, 7])),
        r"a\.npz has test images of class 7, which the images to train on lack",
    ),
    "too few": (
        lambda folder: save(folder, images=make(4)[0], labels=np.array([0, 1, 0, 1])),
        r"a\.npz has 4 images, of which none can be held out for test: give 5 or more",
    ),
    "no test labels": (lambda folder: save(folder, test_images=make()[0]), "lacks the array test_labels"),
    "few test labels": (
        lambda folder: save(folder, test_images=make(4)[0], test_labels=np.arange(3)),
        r"labels must have shape \(4,\), one per image, not \(3,\)",
    ),
    "sizes": (lambda folder: save_folder(folder, ((8, 8), (9, 8))), r"have 2 sizes, such as .*give --image_size=N"),
    "no folders": (lambda folder: str(folder), "has no folders: put the images of each class into a folder of its own"),
    "missing": (lambda folder: str(folder / "nosuch"), "there is no folder"),
    "nothing": (lambda folder: "", "--data is missing: give a data set such as mnist, an .npz"),
}


@pytest.mark.parametrize("name", BAD)
def test_data_that_cannot_be_trained_on_are_one_sentence(tmp_path, name):
    write, sentence = BAD[name]
    with pytest.raises(DataError, match=sentence):
        data.load(write(tmp_path), validation_size=1)


def test_damaged_and_missing_images_of_a_folder_are_counted(tmp_path):
    folder = save_folder(tmp_path / "pets")
    for name in ("cat/1.png", "dog/2.png"):
        (tmp_path / "pets" / name).write_bytes(b"damaged")
    cut = tmp_path / "pets" / "dog" / "3.png"
    cut.write_bytes(cut.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"3 of 8 files cannot be read as images, such as .*cat/1\.png \("):
        own.read(folder)
    (tmp_path / "pets" / "bird").mkdir()
    with pytest.raises(DataError, match=r"the folder .*bird holds no images"):
        own.read(folder)


def test_a_mapped_file_that_shrinks_is_one_sentence(tmp_path):
    dataset = data.load(save_pair(tmp_path), validation_size=1)
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:5000])
    with pytest.raises(DataError, match=r"x\.npy became shorter while it was read: it has 5,000 bytes of 11,648"):
        dataset.train.images[np.arange(3)]


@pytest.mark.parametrize("form", [pytest.param("npz", marks=pytest.mark.slow), "pair"])
def test_a_run_is_not_resumed_on_other_data(tmp_path, form):
    write = save if form == "npz" else save_pair
    name = write(tmp_path)
    train(tiny(name, num_steps=3), tmp_path / "run")
    before = sorted((path, path.stat().st_size) for path in (tmp_path / "run").rglob("*"))
    images, labels = make()
    if form == "npz":
        save(tmp_path, images=255 - images)
    else:
        np.save(tmp_path / "y.npy", labels[::-1])
    with pytest.raises(UserError, match=r"run holds a run on other images or labels of .*: give another workdir, or "):
        train(tiny(name), tmp_path / "run")
    assert sorted((path, path.stat().st_size) for path in (tmp_path / "run").rglob("*")) == before
    write(tmp_path)
    assert train(tiny(name), tmp_path / "run").step == 6


def test_a_config_is_fitted_to_the_images(tmp_path):
    images, labels = make(400, size=16)
    path = save(tmp_path, images=images, labels=labels)
    config, sentence = fitting.fit(Config(), path, fixed=("batch_size",))
    assert (config.classifier.network, config.data.validation_size, config.num_steps) == ("resnet20", 32, 1000)
    assert "320 images of 16x16x3 to train on, 32 of them held out" in sentence
    kept, _ = fitting.fit(Config(), path, fixed=("classifier.network", "data.validation_size"))
    assert (kept.classifier.network, kept.data.validation_size) == ("digits_cnn", 180)
    assert fitting.fit(Config(), path, adapts=False)[0].classifier.network == "digits_cnn"
    odd = save(tmp_path, images=images[:, :15], labels=labels)
    config.adversary.name = "generator"
    data.loading._describe_own.cache_clear()
    with pytest.raises(UserError, match="divisible by 4, not 15 x 16"):
        fitting.fit(config, odd)


@pytest.mark.slow
def test_a_file_that_was_moved_is_still_that_of_the_training(tmp_path):
    (tmp_path / "there").mkdir()
    path = save(tmp_path)
    train(tiny(path, num_steps=1), tmp_path / "run")
    models = loading.from_checkpoints([str(tmp_path / "run")])
    moved = (tmp_path / "a.npz").rename(tmp_path / "there" / "a.npz")
    found = loading.load_data(models, EvaluationConfig(data=str(moved)))
    assert (found.split, len(found.labels)) == ("test", 12)
    save(tmp_path / "there", images=255 - make()[0])
    found = loading.load_data(models, EvaluationConfig(data=str(moved)))
    assert (found.split, len(found.labels)) == ("all", 60)


@pytest.mark.slow
def test_one_flag_trains_on_a_file_and_it_is_evaluated_on_its_test_images(launch, tmp_path):
    (tmp_path / "upper").mkdir()
    path = (tmp_path / "a.npz", tmp_path / "upper" / "A.NPZ")
    save(tmp_path)
    path[0].rename(path[1])
    ended = launch("train", f"--data={path[1]}", f"--workdir={tmp_path}/run", "--config.num_steps=2",
                   "--config.adversary.pgd.num_steps=1", "--config.validation.pgd_steps=1",
                   "--config.classifier.network=tiny", "--num_devices=1")  # fmt: skip
    assert ended.code == 0, ended.err
    assert ended.out.startswith(f"{path[1]}: 48 images of 8x8x3 to train on, 4 of them held out for validation; classi")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["name"] == str(path[1])
    for flag in ([], [f"--data={path[1]}"]):
        ended = launch("evaluate", f"--checkpoint={tmp_path}/run", *flag, "--attacks=fgsm", "--num_devices=1")
        assert ended.code == 0, ended.err
        assert ended.out.startswith("A.NPZ test, 12 images, linf epsilon 0.0313")
