"""What the benchmarks count on paper is what XLA counts; how they talk to each other; never how fast anything is."""

import argparse
import doctest
import importlib
import json
import pathlib
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import pytest

from robust_gan import networks, parallel
from robust_gan.config import Config, methods
from robust_gan.parallel import topology
from robust_gan.training import multi_step

pytestmark = pytest.mark.docs

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def flops_of(function, *arguments):
    """XLA's count, of the program as it is written down: nothing is compiled."""
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


@pytest.mark.parametrize("name", ["resnet20", "resnet_generator"])
def test_the_passes_are_counted_as_xla_counts_them(benchmark, name):
    counting = benchmark("counting")
    is_generator = name == "resnet_generator"
    network = networks.build_generator(name, 3) if is_generator else networks.build_classifier(name, 10)
    cost = counting.generator() if is_generator else counting.classifier(name)
    images = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
    params, batch_stats = jax.eval_shape(network.init, jax.random.key(0), images)

    def forward(params, batch_stats, images):
        return jnp.sum(network.apply(params, batch_stats, images, train=False)[0])

    for function, expected in (
        (forward, cost.forward),
        (jax.value_and_grad(forward), cost.with_weights),
        (jax.value_and_grad(forward, 2), cost.with_images),
        (jax.value_and_grad(forward, (0, 2)), cost.with_both),
    ):
        # Beside the convolutions XLA counts what is done pixel by pixel.
        assert 1.0 <= flops_of(function, params, batch_stats, images) / (4 * expected) < 1.05


def test_the_step_is_counted_as_it_was_measured(benchmark):
    """1,212 GFLOP by XLA's count of the unrolled step of 64 images, 1,281 with the exact penalty."""
    counting = benchmark("counting")
    for penalty, giga in (("finite_difference", 1212), ("exact", 1281)):
        assert 0.98 < counting.step("resnet20", 64, penalty=penalty) / (giga * 1e9) <= 1
    assert counting.step("resnet20", 128) == 2 * counting.step("resnet20", 64)


@pytest.mark.parametrize("name", ["counting", "measuring", "topologies"])
def test_their_examples_run(benchmark, name):
    tested = doctest.testmod(benchmark(name))
    assert tested.attempted
    assert not tested.failed


def test_topologies_are_compiled_once_unless_the_limit_grew(benchmark, monkeypatch, tmp_path, capsys):
    topologies, compiled = benchmark("topologies"), []

    def run_one(name, topology, precision, limit):
        compiled.append((name, limit))
        return {"limit": limit} if name == "mnist" else {"error": "no libtpu"}

    monkeypatch.setattr(topologies, "run_one", run_one)
    for limit, count in ((60, 2), (60, 2), (90, 3)):
        command = ["topologies.py", "--configs=digits,mnist", "--topologies=v5e:2x2", f"--output={tmp_path}/rows"]
        monkeypatch.setattr(sys, "argv", [*command, f"--limit={limit}"])
        topologies.main()
        assert f"| `mnist`, v5e:2x2 | not finished in {limit} CPU s |" in capsys.readouterr().out
        assert len(compiled) == count


def test_the_step_of_any_method_is_compiled_for_a_topology(benchmark, monkeypatch):
    monkeypatch.setattr("robust_gan.parallel.topology.find_topology", lambda name: range(256))
    monkeypatch.setattr(
        "robust_gan.training.topology.compile_step",
        lambda config, name: topology.Compiled(name, config.adversary.name, 256, config.batch_size),
    )
    topologies = benchmark("topologies")
    for name, adversary in (("digits", "generator"), ("digits:pgd", "pgd")):
        row = topologies.compile_one(name, "v5e:16x16", "bfloat16")
        assert (row["program"], row["batch_size"]) == (adversary, 4 * 256)


def test_the_step_that_is_timed_is_that_of_a_run(benchmark, monkeypatch):
    jax_step = benchmark("jax_step")
    monkeypatch.setattr(jax_step, "NUM_IMAGES", 20)
    config = Config(batch_size=4)
    devices = parallel.find_devices(num_devices=1)
    play, loop_state, arrays = jax_step.start(config, (8, 8, 1), devices)
    indices = multi_step.batch_indices(config, 0, 1, 2, 20, devices)
    after, output = jax.eval_shape(parallel.map_step(play, devices), loop_state, arrays, indices)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, loop_state)
    assert "generator_loss" in output.metrics


@pytest.mark.parametrize("method", ["none", "n_fgsm", "trades", "cond_generator_refined"])
def test_the_training_step_that_is_timed_is_that_of_a_method(benchmark, monkeypatch, method):
    jax_step, jax_train, train = (benchmark(name) for name in ("jax_step", "jax_train", "train"))
    assert set(train.METHODS) <= set(methods.METHODS)
    monkeypatch.setattr(jax_step, "NUM_IMAGES", 20)
    given = train.arguments(argparse.ArgumentParser()).parse_args([f"--method={method}", "--batch=4"])
    config = jax_train.read_config(given)
    assert (config.batch_size, config.classifier.network, config.precision) == (4, "resnet20", "float32")
    devices = parallel.find_devices(num_devices=1)
    play, loop_state, arrays = jax_step.start(config, (8, 8, 3), devices)
    indices = multi_step.batch_indices(config, 0, 1, 2, 20, devices)
    after, output = jax.eval_shape(parallel.map_step(play, devices), loop_state, arrays, indices)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, loop_state)
    assert ("adversarial_loss" in output.metrics) == (method != "none")
    assert ("generator_loss" in output.metrics) == (method == "cond_generator_refined")


def test_a_peak_can_be_forgotten(benchmark):
    measuring = benchmark("measuring")
    assert len(bytearray(2**26)) == 2**26
    before = measuring.peak_host_bytes()
    measuring.forget_peak()
    assert 0 < measuring.peak_host_bytes() <= before


def test_peers_answer_in_turns(benchmark, tmp_path):
    serving = benchmark("serving")
    program = "import serving; serving.serve(lambda: ({'a': 1}, lambda factor: {'seconds': factor * %d}))"
    peers = [
        serving.Peer(name, [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(FOLDER)!r}); {program % size}"])
        for name, size in (("ours", 1), ("theirs", 2))
    ]
    try:
        assert peers[0].ready(60)["a"] == 1
        peers[1].ready(60)
        assert peers[1].has_answered()
        result = serving.alternate(peers, 3, 60, factor=3)
    finally:
        for peer in peers:
            peer.close()
    assert result["theirs"]["seconds"] == {"median": 6, "min": 6, "max": 6, "count": 3}
    assert result["ratio"]["median"] == 0.5


def test_a_peer_that_ends_or_is_late_is_told_with_its_last_words(benchmark, tmp_path):
    serving = benchmark("serving")
    ended = serving.Peer("one", [sys.executable, "-c", "raise SystemExit('no such device')"], tmp_path / "log")
    with pytest.raises(serving.LateError, match=r"(?s)one ended with code 1.*no such device"):
        ended.ready(60)
    late = serving.Peer("two", [sys.executable, "-c", "import time; time.sleep(60)"])
    with pytest.raises(serving.LateError, match="two did not answer within 0 seconds"):
        late.ready(0.1)
    assert (ended.runs(), late.runs()) == (False, True)
    for peer in (ended, late):
        peer.close()


def test_a_report_is_whole_after_every_row(benchmark, tmp_path, capsys):
    report = benchmark("measuring").Report(tmp_path / "deep" / "report.json", "some rows")
    report.add("one", seconds=1.5, detail={"not": "shown"})
    document = json.loads((tmp_path / "deep" / "report.json").read_text())
    assert document["rows"] == [{"name": "one", "seconds": 1.5, "detail": {"not": "shown"}}]
    assert document["environment"]["versions"]["jax"] == jax.__version__
    assert capsys.readouterr().out.splitlines() == ["# some rows", "one: seconds 1.5"]


@pytest.mark.parametrize("script", ["step", "attack", "train", "evaluate", "gpu"])
def test_every_script_says_what_it_is_for(script):
    program = [sys.executable, str(FOLDER / f"{script}.py"), "--help"]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=120, check=True, cwd=ROOT)
    assert "--output" in ended.stdout
