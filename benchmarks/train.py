"""Times a training step of the classifier, alternately with PyTorch as its users write it: eager, channels last.

    python benchmarks/train.py --method n_fgsm --classifier resnet20 --batch 128 --by cpu_seconds --rounds 2
    taskset -c 1 python benchmarks/train.py --method none --by cpu_seconds     # one core, of a machine that is busy
    python benchmarks/train.py --method pgd --against none --rounds 1          # ours alone

The methods are those of `robust_gan.config.methods`: standard training, N-FGSM, PGD with 10 steps, TRADES, and a
generator that sees the classifier's gradient and is asked twice. Ours fetches and augments its images in the step, as
a run does; PyTorch gets one batch that lies there.
"""

import argparse
import sys
from pathlib import Path

import measuring
import serving

HERE = Path(__file__).parent
METHODS = ("none", "n_fgsm", "pgd", "trades", "cond_generator_refined")
RADIUS = 8 / 255


def arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds what both sides are given."""
    parser.add_argument("--method", default="none", choices=METHODS)
    parser.add_argument("--classifier", default="resnet20", choices=("resnet20", "resnet20_wide", "resnet18"))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2, help="steps that are timed at a time")
    parser.add_argument("--statistics", default="batch", choices=("batch", "running"), help="BatchNorm under attack")
    return parser


def main() -> None:
    """Runs ours and PyTorch's alternately and reports both."""
    parser = arguments(argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", default="torch", choices=("torch", "none"))
    parser.add_argument("--by", default="seconds", choices=("seconds", "cpu_seconds"), help="what the ratio is of")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds for one answer of either")
    parser.add_argument("--output", help="a JSON file")
    given = parser.parse_args()
    shared = [f"--{name}={getattr(given, name)}" for name in ("method", "classifier", "batch", "steps", "statistics")]
    scripts = {"ours": ["jax_train.py"], "torch": ["torch_train.py", "--serve"]}
    report = measuring.Report(given.output, f"training by {given.method}, {given.classifier}, {given.batch} images")
    peers = []
    try:
        for name in ("ours", given.against):
            if name in scripts:
                script, *options = scripts[name]
                peers.append(serving.Peer(name, [sys.executable, str(HERE / script), *options, *shared]))
                report.add(f"{name}, ready", **peers[-1].ready(given.timeout))
        result = serving.alternate(peers, given.rounds, given.timeout, given.by)
        for peer in peers:
            report.add(peer.name, **result[peer.name])
        if "ratio" in result:
            report.add("ours / torch", ratio=result["ratio"])
    finally:
        for peer in peers:
            peer.close()


if __name__ == "__main__":
    main()
