"""Measures the robust accuracy of checkpoints and models: white-box, and black-box from other models.

    robust-gan-evaluate --checkpoint=runs/digits --attacks=clean,fgsm,pgd40,generator --output=runs/report
    robust-gan-evaluate --checkpoint=runs/a,runs/b@2000 --surrogates=runs/surrogate
    robust-gan-evaluate --model=my_package.my_module:my_function --data=mine.npz --epsilon=8/255 --suite=quick

A checkpoint is DIR, DIR@STEP, DIR@best (the default) or DIR@last, a file of robust-gan-export, or zoo:NAME.
"""

import dataclasses
from typing import Any, NoReturn

from absl import flags

from robust_gan import cli
from robust_gan.cli import memory
from robust_gan.errors import UserError

_CHECKPOINT = flags.DEFINE_list("checkpoint", [], "The models under attack.")
_MODEL = flags.DEFINE_list("model", [], "Classifiers of your own: the function returns a logits_fn.")
flags.DEFINE_list("surrogates", [], "Held-out models on which black-box attacks are made.")
flags.DEFINE_string("suite", "", "quick, paper, autoattack, full or corruptions; or name attacks.")
flags.DEFINE_string(
    "attacks",
    None,
    "In place of the suite's, made on every model: generator, fgsm, pgdNxR (N steps, R restarts), margin_pgdNxR, "
    "apgd_ce, apgd_dlr, apgd_t, fab_t, square, spsa, uniform_noise, retrained_generator, "
    "retrained_generator_label, retrained_generator_refined. Default: clean,fgsm,pgd10,generator.",
)
flags.DEFINE_string("sequential", None, "In place of the suite's, each on the examples that remain.")
flags.DEFINE_list("certify", [], "Certify images too: ibp, crown (linf); smoothing (l2).")
flags.DEFINE_float("smoothing_sigma", 0.25, "Standard deviation of smoothing's noise, in units of [0, 1].")
flags.DEFINE_integer("smoothing_samples", 10_000, "Noisy images of each image.")
flags.DEFINE_float("smoothing_alpha", 0.001, "Probability of a wrong certificate of an image.")
flags.DEFINE_string("data", "", "A TFDS name, FILE.npz, IMAGES.npy,LABELS.npy, folder; else training's.")
flags.DEFINE_string("split", "test", "test, validation or train.")
flags.DEFINE_integer("num_examples", 0, "Only the first images of the split; 0 for all.")
flags.DEFINE_string("norm", "", "linf, l2, or several with radii; empty for the norm of training.")
flags.DEFINE_string("epsilon", None, "In units of [0, 1]: 8/255, or several; by default that of training.")
flags.DEFINE_integer("batch_size", 500, "Images at once; no result depends on it.")
flags.DEFINE_integer("seed", 0, "Of the attacks.", lower_bound=0)
flags.DEFINE_string("data_dir", "", "Prepared data; empty for where the training found them.")
flags.DEFINE_integer("image_size", 0, "Crop and resize a folder's images to N x N; 0 for as they are.", lower_bound=0)
flags.DEFINE_enum("channels", "", ["", "last"], "last: take a file's images as they are, whatever shape.")
flags.DEFINE_string("output", "", "Folder of the report; a stopped evaluation resumes there.")
flags.DEFINE_bool("overwrite", False, "Start anew where the folder holds another evaluation.")
flags.DEFINE_list("plots", [], "To draw: examples, curve, transfer, trace (needs the extra plot).")
flags.DEFINE_bool("save_adversarial", False, "Write those of --sequential to adversarial.npz.")
flags.DEFINE_bool(
    "use_batch_stats",
    False,
    "BatchNorm uses the batch's statistics: too lenient.",
)
flags.DEFINE_enum("platform", "", ["", "cpu", "gpu", "tpu"], "Where; empty for the best there is.")
flags.DEFINE_integer("num_devices", 0, "How many devices; 0 for all.")
flags.DEFINE_bool("progress", None, "Show a bar; by default on a terminal, and lines in a file.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "With --topology: write nothing, and end.")
_TOPOLOGY = flags.DEFINE_string("topology", "", "Compile the attacks for absent TPUs, such as v5e:2x2.")
flags.DEFINE_string("adversarial", "", "Adversarial images of the evaluated ones, scored as an attack.")
flags.DEFINE_string("require", "", "Exit code 3 where an accuracy is lower: autoattack>=0.45,clean>=0.9.")

_FLAGS = {"checkpoints": "checkpoint", "models": "model"}
"""Flags that have another name than their field of `EvaluationConfig`."""

_GROUPS = {
    "Models": ["checkpoint=DIR[@STEP],..", "model=MODULE:FUNCTION,..", "surrogates=DIR[@STEP],.."],
    "Attacks": ["suite=NAME", "attacks=NAME,..", "sequential=NAME,..", "norm=linf|l2,..",
                "epsilon=X,..", "seed=N", "certify=NAME,..", "smoothing_sigma=X", "smoothing_samples=N",
                "smoothing_alpha=X"],
    "Images": ["data=NAME|FILE", "data_dir=DIR", "split=NAME", "num_examples=N", "image_size=N", "channels=last",
               "adversarial=FILE"],
    "Report": ["output=DIR", "overwrite", "plots=NAME,..", "save_adversarial", "require=NAME>=X,.."],
    "How": ["batch_size=N", "platform=cpu|gpu|tpu", "num_devices=N", "[no]progress", "use_batch_stats",
            "dry_run", "topology=CHIP:GRID"],
}  # fmt: skip


def main(argv):
    """Evaluates."""
    del argv
    if not _MODEL.value:
        cli.required("checkpoint", ",".join(_CHECKPOINT.value), "the workdir of a run, such as runs/digits")

    if _DRY_RUN.value != bool(_TOPOLOGY.value):
        raise UserError("--dry_run of an evaluation compiles its attacks for TPUs: give both --dry_run and --topology")

    # Imported after the flags are checked, so that a mistake is reported before jax is loaded.
    from robust_gan import parallel
    from robust_gan.evaluation import EvaluationConfig
    from robust_gan.reporting import evaluation_record, run, threats

    memory.return_after_compiling()
    fields = [field.name for field in dataclasses.fields(EvaluationConfig)]
    values: dict[str, Any] = {name: flags.FLAGS[_FLAGS.get(name, name)].value for name in fields}
    config = EvaluationConfig(**values)
    if _TOPOLOGY.value:
        return _compile_attacks(config)
    joined, unwritten = None, ""
    try:
        results, joined = run.run_threats(config)
        found = [(result.scores, values) for result, values in results]
    except run.UnwrittenError as error:
        found, unwritten = [(error.scores, error.values)], str(error)
    if not parallel.is_primary():
        return 0
    missed = [row for scores, values in found for row in _print(config, scores, values)]
    if unwritten:
        return cli.complain(unwritten)
    if joined:
        print(f"\nAll threat models:\n{threats.markdown(joined)}")
    if config.output:
        names = threats if joined else evaluation_record
        print(f"\nReport: {config.output.rstrip('/')}/{names.TABLES}, and the same as {names.RECORD}")
    if missed:
        cli.complain("; ".join(missed))
    return cli.MISSED if missed else 0


def _print(config, scores, values):
    """Prints the tables of an evaluation; returns a sentence for each requirement that is missed."""
    from robust_gan.evaluation import statistics
    from robust_gan.reporting import evaluation_report

    threat, data = values["threat"], values["data"]
    print(f"{data['name']} {data['split']}, {data['count']} images, {threat['norm']} epsilon {threat['epsilon']:g}")
    if config.use_batch_stats:
        print(evaluation_report.USE_BATCH_STATS)
    print(f"Accuracy in %; {statistics.INTERVALS}.\n{evaluation_report.white_and_black_box(scores)}")
    for title, body in evaluation_report.sections(scores, values).items():
        print(f"\n{title}:\n{body}")
    where = "" if config.has_one_threat else f" under {threat['norm']} epsilon {threat['epsilon']:g}"
    return [f"{row}{where}" for row in evaluation_report.find_requirements(values) if not row.is_met]


def _compile_attacks(config):
    """Prints what each attack takes on a topology."""
    from robust_gan import parallel
    from robust_gan.evaluation import topology as attacks_on_topology
    from robust_gan.parallel import topology
    from robust_gan.reporting import run

    topology.find_topology(_TOPOLOGY.value)  # Before jax looks for devices.
    subject = run.load(config, parallel.find_devices("cpu", 1))
    for found in attacks_on_topology.compile_attacks(subject, config.batch_size, _TOPOLOGY.value):
        print(topology.format_compiled(found), flush=True)
    return 0


def run() -> NoReturn:
    """Runs the command and exits."""
    cli.run(main, document=__doc__, groups=_GROUPS, spread=True, pod=True)
