"""The attacks here against the reference implementations, on the same classifier and the same images.

AutoAttack's authors wrote it for torch (`pyautoattack`): it attacks a JAX classifier through a bridge. Foolbox attacks
it directly. Needs the extra `reference`; see README.md beside this file.
"""

import argparse
import copy
import functools
import importlib.metadata
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from bridge import Bridge

from robust_gan import L2Threat, LinfThreat, attacks, checkpoint, data, evaluation, losses

COMPONENTS = {
    "apgd_ce": "apgd-ce",
    "apgd_dlr": "apgd-dlr",
    "apgd_t": "apgd-t",
    "fab100x1": "fab",
    "fab_t": "fab-t",
    "square": "square",
    "square_in_their_places": "square",
}
"""Our names and the reference's."""
IN_THEIR_PLACES = ("square_in_their_places", functools.partial(attacks.square, all_places=False))
"""Our Square with squares only where the reference puts them: never on the last row and column."""


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a run's workdir or its checkpoints folder")
    parser.add_argument("--epsilon", type=float, help="default: that of the checkpoint's configuration")
    parser.add_argument("--norm", choices=["linf", "l2"], help="default: that of the checkpoint's configuration")
    parser.add_argument("--num_examples", type=int, default=1000, help="how many test images, the first ones")
    parser.add_argument("--seeds", type=int, default=1, help="how often to run both, with seeds 0, 1, ...")
    parser.add_argument(
        "--alone",
        default="apgd_ce,apgd_dlr,apgd_t,fab_t,square,square_in_their_places",
        help="components to run by themselves",
    )
    parser.add_argument("--no-standard", action="store_true", help="leave out the whole of AutoAttack standard")
    parser.add_argument(
        "--once",
        action="store_true",
        help="each component of AutoAttack standard sequentially and, on the misclassified images, separately",
    )
    parser.add_argument("--no-foolbox", action="store_true", help="leave out FGSM and PGD against Foolbox")
    parser.add_argument(
        "--torch-threads", type=int, default=1, help="of torch's own arithmetic; for small images one is the fastest"
    )
    parser.add_argument("--json", help="file of the results")
    return parser.parse_args()


def timed(function):
    """Returns the result, and the wall and the processor seconds that it took."""
    wall, process = time.perf_counter(), time.process_time()
    result = function()
    return result, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - process}


class Ours:
    """The attacks of this package, compiled for the whole batch and spread over the devices, as evaluation does it."""

    def __init__(self, logits_fn, images, labels, threat):
        self.logits_fn, self.images, self.labels, self.threat = logits_fn, images, labels, threat
        self.correct = jax.jit(lambda logits_fn, images: losses.is_correct(logits_fn(images), labels))
        self.devices = max(count for count in range(1, len(jax.devices()) + 1) if len(images) % count == 0)
        self.compiled = {}

    def only(self, chosen):
        """Returns the same with the chosen images alone."""
        return Ours(self.logits_fn, self.images[chosen], self.labels[chosen], self.threat)

    def run(self, names, seed):
        """Returns which images are robust after the sequential attacks, bool `[N]`."""
        components = (IN_THEIR_PLACES,) if names == [IN_THEIR_PLACES[0]] else attacks.autoattack(names)
        if tuple(names) not in self.compiled:
            run = functools.partial(attacks.run_sequential, components)
            self.compiled[tuple(names)] = jax.pmap(
                run, in_axes=(None, 0, 0, 0, None), devices=jax.devices()[: self.devices]
            )
        keys = jax.random.split(jax.random.key(seed), len(self.images))
        shares = [x.reshape(self.devices, -1, *x.shape[1:]) for x in (keys, self.images, self.labels)]
        outcome = self.compiled[tuple(names)](self.logits_fn, *shares, self.threat)
        # Judged as the reference is: all images in one batch.
        made = jnp.asarray(np.asarray(outcome.images).reshape(self.images.shape))
        clean = np.asarray(outcome.remaining)[:, 0].reshape(-1)
        return clean & np.asarray(self.correct(self.logits_fn, made))


class Reference:
    """AutoAttack as its authors wrote it, on the classifier through the bridge."""

    def __init__(self, logits_fn, images, labels, threat):
        self.bridge = Bridge(logits_fn)
        self.images = torch.from_numpy(np.array(images).transpose(0, 3, 1, 2).copy())
        self.labels = torch.from_numpy(np.array(labels, np.int64))
        self.threat = threat

    def only(self, chosen):
        """Returns the same with the chosen images alone."""
        part = copy.copy(self)
        part.images, part.labels = self.images[chosen], self.labels[chosen]
        return part

    def run(self, names, seed):
        """Returns which images are robust after the sequential attacks, bool `[N]`."""
        import pyautoattack

        norm = {"linf": "Linf", "l2": "L2"}[self.threat.norm]
        suite = pyautoattack.AutoAttack(self.bridge, eps=float(self.threat.epsilon), norm=norm, seed=seed)
        suite.attacks_to_run = [COMPONENTS[name] for name in names]
        adversarial, _ = suite.run_standard_evaluation(self.images, self.labels, batch_size=len(self.images))
        return np.logical_and(*(self._right(images) for images in (self.images, adversarial)))

    def _right(self, images):
        with torch.no_grad():
            return (self.bridge(images).argmax(1) == self.labels).numpy()


def compare(ours, reference, names, seeds):
    """Runs both in alternation: the first run of each compiles, the second is timed without that."""
    rows = []
    for seed in range(seeds):
        row = {"seed": seed}
        for phase in ("with_compilation", "without_compilation") if seed == 0 else ("without_compilation",):
            for who, player in (("reference", reference), ("ours", ours)):
                standing, row[f"{who}_seconds_{phase}"] = timed(
                    lambda player=player, seed=seed: player.run(names, seed)
                )
                row[f"{who}_robust"] = int(standing.sum())
                row[f"{who}_standing"] = standing
        both = [row.pop(f"{who}_standing") for who in ("reference", "ours")]
        row["only_the_reference_breaks"] = int((both[1] & ~both[0]).sum())
        row["only_ours_breaks"] = int((both[0] & ~both[1]).sum())
        rows.append(row)
    return rows


def compare_once(ours, reference):
    """Yields a row for each component of AutoAttack standard: sequential, and separate on the misclassified images.

    An attack treats each image by itself, so what stands after one alone is known when it has attacked those that
    stood before it and, apart, those that had fallen: each side attacks each image with each component once.
    """
    players = {"reference": reference, "ours": ours}
    clean = np.asarray(ours.correct(ours.logits_fn, ours.images))
    standing = dict.fromkeys(players, clean)
    for name, _ in attacks.autoattack():
        row, alone = {"component": name}, {}
        for who, player in players.items():
            before, alone[who] = standing[who], np.zeros_like(clean)
            for part, chosen in (("standing", before), ("fallen", clean & ~before)):
                row[f"{who}_{part}"] = int(chosen.sum())
                if chosen.any():
                    still, row[f"{who}_seconds_{part}"] = timed(
                        lambda player=player, chosen=chosen, name=name: player.only(chosen).run([name], 0)
                    )
                    alone[who][chosen] = still
            standing[who] = before & alone[who]
            row[f"{who}_alone"], row[f"{who}_sequential"] = int(alone[who].sum()), int(standing[who].sum())
        for kind, left in (("alone", alone), ("sequential", standing)):
            row[f"only_the_reference_breaks_{kind}"] = int((left["ours"] & ~left["reference"]).sum())
            row[f"only_ours_breaks_{kind}"] = int((left["reference"] & ~left["ours"]).sum())
        yield row


def against_foolbox(logits_fn, images, labels, threat):
    """FGSM and PGD-10 of Foolbox and ours."""
    import eagerpy
    import foolbox

    epsilon, kind = float(threat.epsilon), {"linf": "Linf", "l2": "L2"}[threat.norm]
    model = foolbox.JAXModel(jax.jit(logits_fn), bounds=threat.bounds)
    theirs = {
        "fgsm": getattr(foolbox.attacks, f"{kind}FastGradientAttack")(random_start=False),
        "pgd10": getattr(foolbox.attacks, f"{kind}ProjectedGradientDescentAttack")(rel_stepsize=0.25, steps=10),
    }
    rows = {}
    for name, attack in theirs.items():
        (_, clipped, _), spent = timed(
            lambda attack=attack: attack(model, eagerpy.astensor(images), eagerpy.astensor(labels), epsilons=epsilon)
        )
        run = jax.jit(attacks.by_name(name))
        arguments = (logits_fn, jax.random.key(0), images, labels, threat)
        jax.block_until_ready(run(*arguments))
        made, ours_spent = timed(lambda run=run, arguments=arguments: jax.block_until_ready(run(*arguments)))
        right = losses.is_correct(logits_fn(images), labels)
        robust = [int((right & losses.is_correct(logits_fn(x), labels)).sum()) for x in (clipped.raw, made)]
        rows[name] = {
            "reference_robust": robust[0],
            "ours_robust": robust[1],
            "reference_seconds": spent,
            "ours_seconds": ours_spent,
        }
    return rows


def main():
    arguments = parse()
    torch.set_num_threads(arguments.torch_threads)
    record = checkpoint.read_record(arguments.checkpoint, "best")
    logits_fn = checkpoint.get_classifier(record)
    test = data.from_config(record.config.data).test
    images = jnp.asarray(evaluation.to_unit(test.images[: arguments.num_examples]))
    labels = jnp.asarray(test.labels[: arguments.num_examples], jnp.int32)
    norm = arguments.norm or record.config.threat.norm
    epsilon = record.config.threat.epsilon if arguments.epsilon is None else arguments.epsilon
    threat = {"linf": LinfThreat, "l2": L2Threat}[norm](epsilon)
    result = {
        "images": len(images),
        "devices": len(jax.devices()),
        "norm": norm,
        "epsilon": epsilon,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "torch", "pyautoattack", "foolbox")},
        "clean": int(losses.is_correct(logits_fn(images), labels).sum()),
        "alone": {},
    }
    print(json.dumps({key: value for key, value in result.items() if key != "alone"}), flush=True)
    ours, reference = (kind(logits_fn, images, labels, threat) for kind in (Ours, Reference))
    if arguments.once:
        result["once"] = []
        for row in compare_once(ours, reference):
            result["once"].append(row)
            print(json.dumps(row), flush=True)
    for name in [] if arguments.once else filter(None, arguments.alone.split(",")):
        result["alone"][name] = compare(ours, reference, [name], arguments.seeds)
        print(name, json.dumps(result["alone"][name]), flush=True)
    if not (arguments.no_standard or arguments.once):
        names = [name for name, _ in attacks.autoattack()]
        result["standard"] = compare(ours, reference, names, arguments.seeds)
        print("standard", json.dumps(result["standard"]), flush=True)
    if not arguments.no_foolbox:
        result["foolbox"] = against_foolbox(logits_fn, images, labels, threat)
        print("foolbox", json.dumps(result["foolbox"]), flush=True)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
