"""Exported models: the same networks bit for bit from one file, without Orbax, and never silently wrong."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from robust_gan import LinfThreat, checkpoint, evaluation
from robust_gan.checkpoint import exported, metadata
from robust_gan.errors import CheckpointError, UserError
from robust_gan.evaluation import EvaluationConfig, loading

IMAGES = np.random.default_rng(0).uniform(size=(5, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def file(tiny_run, tmp_path_factory):
    return checkpoint.export(tiny_run, tmp_path_factory.mktemp("exported") / "sub" / "tiny.safetensors", 2)


def rewritten(file, folder, **changes):
    """A copy of a file whose header or arrays were changed, with a valid digest of the header."""
    arrays, record = exported.read(file)
    changed = changes.pop("arrays", lambda arrays: arrays)(arrays)
    return exported.write(folder / "changed.safetensors", changed, metadata.signed(record | changes))


def test_classifier_generator_and_attack_are_those_of_the_checkpoint_bit_for_bit(tiny_run, file):
    for load in (checkpoint.load_classifier, checkpoint.load_generator):
        assert np.array_equal(load(file)(IMAGES), load(tiny_run, 2)(IMAGES))
    attacked = (checkpoint.load_classifier(file), jax.random.key(0), IMAGES, np.zeros(5, np.int32), LinfThreat(0.15))
    assert np.array_equal(checkpoint.load_attack(file)(*attacked), checkpoint.load_attack(tiny_run, 2)(*attacked))
    here, there = checkpoint.read_record(file), checkpoint.read_record(tiny_run, 2)
    for field in ("step", "config", "data", "metrics", "versions"):
        assert getattr(here, field) == getattr(there, field)
    assert checkpoint.read_record(file, 2).step == checkpoint.read_record(file, "last").step == 2


def test_the_file_holds_the_networks_alone_and_any_reader_finds_what_they_are(tiny_run, file):
    arrays = safetensors.numpy.load_file(file)
    assert {name.split("/")[1] for name in arrays} == {"params", "batch_stats"}
    with safetensors.safe_open(file, framework="numpy") as opened:
        record = json.loads(opened.metadata()["robust_gan"])
    assert record["format"] == checkpoint.FORMAT
    assert record["config"]["classifier"]["network"] == "digits_cnn"
    assert record["config"]["threat"] == {"norm": "linf", "epsilon": 0.15}
    assert record["data"]["image_shape"] == [8, 8, 1]
    assert record["data"]["num_classes"] == 10
    assert set(record["versions"]) >= {"robust_gan", "commit", "jax"}
    again = checkpoint.export(tiny_run, file.parent / "again.safetensors", 2)
    assert again.read_bytes() == file.read_bytes()
    assert checkpoint.export(file, file.parent / "of_a_file.safetensors").read_bytes() == file.read_bytes()


def test_averaged_weights_are_exported_and_folders_are_not(tmp_path, tiny_run):
    record = checkpoint.read_record(tiny_run, 2)
    variables = checkpoint.get_variables(record)
    record.config.classifier.ema_decay, record.config.data.data_dir = 0.5, "/secret"
    record.config.init_from = "/secret/run"
    halved = jax.tree.map(lambda leaf: leaf / 2, variables["classifier"])
    writer = checkpoint.Writer(tmp_path, record.config, record.data)
    writer.save(3, {**variables, "average": halved}, {checkpoint.SELECTION: 0.5})
    writer.close()
    path = checkpoint.export(tmp_path, tmp_path / "a.safetensors")
    loaded = checkpoint.get_variables(checkpoint.read_record(path))
    for left, right in zip(jax.tree.leaves(loaded["classifier"]), jax.tree.leaves(halved), strict=True):
        assert np.array_equal(left, right)
    assert np.array_equal(checkpoint.load_classifier(path)(IMAGES), checkpoint.load_classifier(tmp_path)(IMAGES))
    assert b"secret" not in path.read_bytes()


def test_files_are_evaluated_beside_checkpoints_under_a_name_of_their_own(tiny_run, file):
    models = loading.from_checkpoints([str(file), f"{tiny_run}@1"])
    assert [evaluated.model.name for evaluated in models] == [str(file), f"{tiny_run}@1"]
    assert loading.from_checkpoints([str(file)])[0].model.name == "tiny"
    assert models[0].description["checkpoint"] == str(file)
    assert models[0].model.generator is not None
    data = loading.load_data(models[:1], EvaluationConfig([str(file)], num_examples=3))
    assert evaluation.to_unit(data.images).shape == (3, 8, 8, 1)
    with pytest.raises(UserError, match="is given twice"):
        loading.from_checkpoints([str(file), f"{file}@2"])


PROGRAM = """
import sys
sys.modules["orbax"] = sys.modules["orbax.checkpoint"] = None
import numpy as np
from robust_gan import checkpoint
print(np.asarray(checkpoint.load_classifier(sys.argv[1])(np.full((1, 8, 8, 1), 0.5, np.float32))).tobytes().hex())
"""


@pytest.mark.packaging
def test_a_file_loads_without_orbax(file):
    ended = subprocess.run([sys.executable, "-c", PROGRAM, str(file)], capture_output=True, text=True, check=True)
    here = checkpoint.load_classifier(file)(np.full((1, 8, 8, 1), 0.5, np.float32))
    assert ended.stdout.strip() == np.asarray(here).tobytes().hex()


@pytest.mark.parametrize("kept", [0, 5, 60, -3])
def test_a_truncated_file_is_one_sentence(file, tmp_path, kept):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"cut.safetensors cannot be read as safetensors \(.*\): copy it again"):
        checkpoint.load_classifier(cut)


def test_a_flipped_byte_of_the_arrays_or_of_the_record_is_found(file, tmp_path):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint .*a.safetensors is damaged \(the array .* is not what was"):
        checkpoint.load_classifier(tmp_path / "a.safetensors")
    content = file.read_bytes().replace(b'\\"seed\\": 0', b'\\"seed\\": 1')
    (tmp_path / "b.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"b.safetensors is damaged \(its record cannot be read"):
        checkpoint.load_classifier(tmp_path / "b.safetensors")


def test_a_file_of_another_program_a_wrong_shape_or_another_format_is_one_sentence(file, tmp_path):
    foreign = tmp_path / "foreign.safetensors"
    safetensors.numpy.save_file({"weight": np.zeros(3, np.float32)}, foreign, {"format": "pt"})
    with pytest.raises(CheckpointError, match="was not written by robust_gan, its header has no record: give a file"):
        checkpoint.load_classifier(foreign)
    name = "classifier/params/Dense_0/kernel"
    leaves = checkpoint.read_record(file).leaves
    wrong = {**leaves, name: {**leaves[name], "shape": [3]}}
    with pytest.raises(
        CheckpointError, match=rf"changed.safetensors is of another architecture: {name} is float32\[3\]"
    ):
        checkpoint.load_classifier(rewritten(file, tmp_path, leaves=wrong))
    with pytest.raises(CheckpointError, match=rf"the array {name} is not what was saved"):
        checkpoint.load_classifier(rewritten(file, tmp_path, arrays=lambda arrays: {**arrays, name: arrays[name].T}))
    with pytest.raises(CheckpointError, match="has format 99, and this version of robust_gan reads format"):
        checkpoint.load_classifier(rewritten(file, tmp_path, format=99))


def test_places_that_hold_no_model_or_take_none_are_one_sentence(file, tiny_run, tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no file .*nosuch.safetensors: give a file of"):
        checkpoint.load_classifier(tmp_path / "nosuch.safetensors")
    with pytest.raises(CheckpointError, match="holds step 2 alone, not 7"):
        checkpoint.read_record(*checkpoint.parse_location(f"{file}@7"))
    for target, sentence in (
        ("a.pt", "ends in .safetensors, not to"),
        ("folder.safetensors", "is a folder: give a file"),
    ):
        (tmp_path / "folder.safetensors").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=sentence):
            checkpoint.export(tiny_run, tmp_path / target)
    (tmp_path / "plain").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        checkpoint.export(tiny_run, tmp_path / "plain" / "a.safetensors")
    # A folder of that name is a run as any other.
    run = shutil.copytree(tiny_run, tmp_path / "run.safetensors")
    assert checkpoint.read_record(run, "last").step == 2


def test_the_command_exports_a_step(launch, tiny_run, tmp_path):
    ended = launch("export", f"--checkpoint={tiny_run}@1", f"--output={tmp_path / 'a.safetensors'}")
    assert ended.code == 0, ended.err
    assert ended.out.startswith(f"{tmp_path / 'a.safetensors'} (")
    assert checkpoint.read_record(tmp_path / "a.safetensors").step == 1
    assert launch("export", f"--checkpoint={tiny_run}").err == (
        "error: --output is missing: give the file to write, such as digits.safetensors\n"
    )
