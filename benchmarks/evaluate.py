"""Times AutoAttack by its parts.

    python benchmarks/evaluate.py --network resnet20 --images 64
    python benchmarks/evaluate.py --checkpoint runs/digits --epsilon 0.15     # the whole of it, on the test images

Without a checkpoint the network has random weights and no image falls, so that every part does all of its work; of its
steps a share is taken and the time scaled by the passes through the classifier, which are counted below.
"""

import argparse
import functools
import sys
import time

from robust_gan.cli import memory, xla_flags

if __name__ == "__main__":
    memory.use_large_pages()
xla_flags.set_flags()

import jax
import jax.numpy as jnp

import attack
import counting
import measuring
import serving
from robust_gan import attacks, networks, parallel
from robust_gan.losses import is_correct
from robust_gan.networks import inference
from robust_gan.threat_model import LinfThreat

PARTS = {"apgd_ce": (100, 20), "apgd_t": (100, 8), "fab_t": (100, 8), "square": (5000, 400)}
"""Steps or queries of each part in AutoAttack, and the number measured here."""
UNMOVED = 1e-6
"""A radius so small that no image is misclassified."""


def passes(part: str, steps: int, num_targets: int = 9) -> float:
    """Returns how many forward passes a part costs for a robust image; a backward pass counts as one too.

    >>> passes("apgd_ce", 100), passes("square", 5000), passes("fab_t", 100)
    (203, 5000, 2710)
    """
    if part == "square":
        return steps
    if part == "fab_t":
        # In each step the two that linearise and the one that looks where it led; once for each target the result.
        return 1 + num_targets * (3 * steps + 1)
    searches = num_targets if part == "apgd_t" else 1
    return 1 + searches * 2 * (steps + 1)


def prepare(network: str, num_images: int):
    """Returns the facts and the function that compiles and times a part."""
    shape = attack.CLASSIFIERS[network]
    keys = jax.random.split(jax.random.key(0), 2)
    images = jax.random.uniform(keys[0], (num_images, *shape))
    params, batch_stats = networks.build_classifier(network, 10).init(keys[1], images[:1])
    classify = inference.classify(network, 10)
    predict = jax.jit(lambda images: jnp.argmax(classify(params, batch_stats, images), -1))
    labels = jnp.concatenate([predict(images[first : first + 256]) for first in range(0, num_images, 256)])
    (device,) = parallel.find_devices(num_devices=1)
    rate = measuring.jax_matmul_rate()
    facts = {"device": device.device_kind, "matmul_flops_per_second": rate}
    if network.startswith("resnet"):
        facts["flops_of_a_forward_pass"] = counting.classifier(network).forward

    def measure(part: str) -> dict[str, float]:
        full, taken = PARTS[part]
        made = attacks.by_name(f"{part}{taken}")

        def run(params, batch_stats, key, images, labels):
            logits_fn = functools.partial(classify, params, batch_stats)
            adversarial = made(logits_fn, key, images, labels, LinfThreat(UNMOVED))
            return jnp.mean(is_correct(logits_fn(adversarial), labels))

        arguments = (params, batch_stats, jax.random.key(1), images, labels)
        began = time.perf_counter()
        compiled = jax.jit(run).lower(*arguments).compile()
        compile_seconds = time.perf_counter() - began
        robust_accuracy = float(compiled(*arguments))
        times = [measuring.timed(lambda: compiled(*arguments).block_until_ready()) for _ in range(2)]
        seconds, cpu = (min(measured[key] for measured in times) for key in ("seconds", "cpu_seconds"))
        share = passes(part, full) / passes(part, taken) / num_images
        answer = {
            "seconds_per_image": seconds * share,
            "cpu_seconds_per_image": cpu * share,
            "compile_seconds": compile_seconds,
            "measured_seconds": seconds,
            "robust_accuracy": robust_accuracy,
        }
        if "flops_of_a_forward_pass" in facts:
            achieved = facts["flops_of_a_forward_pass"] * passes(part, taken) * num_images / seconds
            answer |= {"tflops_per_second": achieved / 1e12, "share_of_matmul": achieved / rate}
        return answer

    return facts, measure


def whole(report: measuring.Report, given: argparse.Namespace) -> None:
    """Attacks the test images of a checkpoint's data with AutoAttack standard, as `launch/evaluate.py` does."""
    from robust_gan import evaluation
    from robust_gan.attacks.autoattack import VERSIONS
    from robust_gan.evaluation import EvaluationConfig, loading

    (evaluated,) = loading.from_checkpoints([given.checkpoint])
    chosen = loading.load_data([evaluated], EvaluationConfig(num_examples=given.images))
    threat = LinfThreat(given.epsilon)
    for run in ("with compilation", "without"):
        cpu = time.process_time()
        _, results = evaluation.evaluate_sequential(
            evaluated.model, chosen.images, chosen.labels, threat, attacks=VERSIONS["standard"]
        )
        for result in results:
            report.add(f"{result.attack}, {run}", **result._asdict())
        total = sum(result.seconds for result in results)
        report.add(f"AutoAttack standard, {run}", seconds=total, cpu_seconds=time.process_time() - cpu)


def main() -> None:
    """Serves, or measures every part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--network", default="resnet18", choices=attack.CLASSIFIERS)
    parser.add_argument("--images", type=int, default=64, help="0 for all that a checkpoint's data have")
    parser.add_argument("--checkpoint", help="attack this one's test images in full")
    parser.add_argument("--epsilon", type=float, default=8 / 255)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--output", help="a JSON file")
    given = parser.parse_args()
    if given.serve:
        serving.serve(lambda: prepare(given.network, given.images))
        return
    report = measuring.Report(given.output, f"AutoAttack standard, {given.checkpoint or given.network}")
    if given.checkpoint:
        whole(report, given)
        return
    facts, measure = prepare(given.network, given.images)
    report.add("ready", **facts)
    for part in given.parts.split(","):
        report.add(part, **measure(part))


if __name__ == "__main__":
    sys.exit(main())
