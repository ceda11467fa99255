"""Times PGD, or a part of AutoAttack, against other libraries' on the same classifier, A B A B.

    python benchmarks/attack.py                                             # PGD with 10 steps, 100 images, ResNet-20
    taskset -c 1 python benchmarks/attack.py --by cpu_seconds
    python benchmarks/attack.py --attack fab_t5 --images 32 --against pyautoattack

The weights are random and the radius so small that nothing falls: everybody does all of the work on all images.
"""

import argparse
import sys
from pathlib import Path

import measuring
import serving

HERE = Path(__file__).parent
RADIUS = 1e-6
LIBRARIES = ("torch", "torchattacks", "foolbox", "pyautoattack")
CLASSIFIERS = {
    "digits_cnn": (8, 8, 1),
    "mnist_cnn": (28, 28, 1),
    "resnet20": (32, 32, 3),
    "resnet20_wide": (32, 32, 3),
    "resnet18": (32, 32, 3),
}
"""Those that have a twin, and the images that they take."""


def arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds what both sides are given."""
    parser.add_argument("--classifier", default="resnet20", choices=CLASSIFIERS)
    parser.add_argument("--attack", default="pgd10", help="as robust_gan names it")
    parser.add_argument("--images", type=int, default=100)
    return parser


def main() -> None:
    """Runs ours and each of the libraries' alternately and reports the ratios."""
    parser = arguments(argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter))
    parser.add_argument("--against", default="torch,torchattacks,foolbox", help=", ".join(LIBRARIES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--by", default="seconds", choices=("seconds", "cpu_seconds"), help="what the ratio is of")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds for one answer")
    parser.add_argument("--output", help="a JSON file")
    given = parser.parse_args()
    shared = [f"--{name}={getattr(given, name)}" for name in ("classifier", "attack", "images")]
    report = measuring.Report(given.output, f"{given.attack}, {given.classifier}, {given.images} images")
    ours = serving.Peer("ours", [sys.executable, str(HERE / "jax_attack.py"), *shared])
    script = [sys.executable, str(HERE / "torch_attacks.py"), "--serve", *shared]
    others = [serving.Peer(name, [*script, f"--library={name}"]) for name in given.against.split(",") if name]
    try:
        report.add("ours, ready", **ours.ready(given.timeout))
        for other in others:
            try:
                report.add(f"{other.name}, ready", **other.ready(given.timeout))
            except serving.LateError as error:  # It is not installed, say: the others are measured all the same.
                report.add(other.name, failed=str(error))
                continue
            result = serving.alternate([ours, other], given.rounds, given.timeout, given.by)
            for name in ("ours", other.name):
                report.add(f"{name} beside {other.name}", **result[name])
            report.add(f"ours / {other.name}", ratio=result["ratio"])
    finally:
        for peer in (ours, *others):
            peer.close()


if __name__ == "__main__":
    main()
