"""One of two processes, as tests/parallel/test_multihost.py starts them: python pod_program.py PORT PROCESS FOLDER.

Writes what it found to FOLDER/PROCESS.json, and a run to FOLDER/run.
"""

import json
import pathlib
import sys

import jax
import numpy as np
import tiny_config

from robust_gan import parallel, training
from robust_gan.errors import UserError
from robust_gan.evaluation import EvaluationConfig
from robust_gan.reporting import run
from robust_gan.storage import leaves

port, process, folder = int(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3])
parallel.connect(f"127.0.0.1:{port}", 2, process, timeout=60)


def refused(function, *arguments):
    try:
        function(*arguments)
    except UserError as error:
        return str(error)
    return ""


def fail():
    if process == 1:
        raise UserError("there is no data here")


def fail_in_first():
    raise UserError("the folder is full")


devices = parallel.find_devices()
found = {
    "devices": [device.process_index for device in devices],
    "share": parallel.shard(np.arange(8), devices).tolist(),
    "joined": parallel.gather(parallel.shard(np.arange(8.0), devices)).tolist(),
    "broadcast_from_primary": parallel.broadcast_from_primary(lambda: ["first", process]),
    "first_fails": refused(parallel.broadcast_from_primary, fail_in_first),
    "one_fails": refused(parallel.run_on_all_processes, fail),
    "same": refused(parallel.assert_equal_across_processes, {"a": {"b": 1}, "c": [2]}),
    "not_same": refused(parallel.assert_equal_across_processes, {"a": {"b": process}, "c": [2]}),
}
state = {"x": np.array([-0.0, np.nan, process], np.float32), "key": jax.random.key(process), "flag": np.array(True)}
state, step = parallel.broadcast_state_from_primary(lambda: (state, 7), state)
found["state"] = [step, *(leaves.digest(leaves.to_host(leaf)) for leaf in jax.tree.leaves(state))]
agreement = parallel.StopConsensus(devices)
found["agreed"] = [agreement.reached(process == 1 and question == 2) for question in range(5)]

config = tiny_config.get_config()
config.seed = process
found["train_not_same"] = refused(training.train, config, folder / "run")
config.seed, config.num_steps = 0, 4
said = []
training.train(config, folder / "run", progress=False, log_fn=said.append)
found["steps_of_4"] = (folder / "run" / "metrics.jsonl").read_text().count("\n")
config.num_steps = 6
result = training.train(config, folder / "run", progress=False, log_fn=said.append)
found["said"] = said
found["digests"] = {name: leaves.digest(np.asarray(leaf)) for name, leaf in leaves.named(result.state).items()}
found["validation"] = result.validation
settings = {
    "attacks": "clean,fgsm,generator",
    "sequential": "pgd2",
    "num_examples": 30,
    "batch_size": 20,
    "progress": False,
}
scores, values = run.run(EvaluationConfig([str(folder / "run@6")], output=folder / "report", **settings))
found["scores"] = {" of ".join(key): held.tolist() for key, held in scores.robust.items()}
found["sequential"] = [result["robust_accuracy"] for result in values["targets"]["run"]["sequential"]]
(folder / f"{process}.json").write_text(json.dumps(found))
np.savez(folder / f"{process}.npz", **{name: np.asarray(leaf) for name, leaf in leaves.named(result.state).items()})
parallel.disconnect()
