"""Measures the robust accuracy of checkpoints and models: white-box, and black-box from other models.

    robust-gan-evaluate --checkpoint=runs/digits --attacks=clean,fgsm,pgd40,generator --output=runs/report
    robust-gan-evaluate --checkpoint=runs/a,runs/b@2000 --surrogates=runs/surrogate
    robust-gan-evaluate --model=my_package.my_module:my_function --data=mine.npz --epsilon=8/255 --suite=quick

A checkpoint is DIR, DIR@STEP, DIR@best (the default) or DIR@last.
"""

from typing import NoReturn

from absl import flags

from robust_gan import cli

_CHECKPOINT = flags.DEFINE_list("checkpoint", [], "The models under attack.")
_MODEL = flags.DEFINE_list("model", [], "Classifiers of your own: the function, which is run, returns a logits_fn.")
_SURROGATES = flags.DEFINE_list("surrogates", [], "Held-out models on which black-box attacks are made.")
_SUITE = flags.DEFINE_string("suite", "", "quick, paper, autoattack or full; or name attacks.")
_ATTACKS = flags.DEFINE_string(
    "attacks",
    None,
    "In place of the suite's, made on every model and evaluated on every checkpoint: generator, fgsm, pgdNxR (N steps, "
    "R restarts), margin_pgdNxR, apgd_ce, apgd_dlr, apgd_t, fab_t, square, spsa, uniform_noise, retrained_generator, "
    "retrained_generator_label, retrained_generator_refined. Default: clean,fgsm,pgd10,generator.",
)
_SEQUENTIAL = flags.DEFINE_string("sequential", None, "In place of the suite's, each on the examples that remain.")
_DATA = flags.DEFINE_string("data", "", "A TFDS data set, or images and labels; empty for the data of training.")
_SPLIT = flags.DEFINE_string("split", "test", "test, validation or train.")
_NUM_EXAMPLES = flags.DEFINE_integer("num_examples", 0, "Only the first images of the split; 0 for all.")
_NORM = flags.DEFINE_enum("norm", "", ["", "linf", "l2"], "Empty for the norm of training.")
_EPSILON = flags.DEFINE_float("epsilon", None, "In the unit of pixels in [0, 1]: 8/255; by default that of training.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 500, "Images at once; no result depends on it.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the attacks.", lower_bound=0)
_DATA_DIR = flags.DEFINE_string("data_dir", "", "Prepared data; empty for where the training found them.")
_CHANNELS = flags.DEFINE_enum("channels", "", ["", "last"], "last: take a file's images as they are, whatever shape.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the report; a stopped evaluation resumes there.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Start anew where the folder holds another evaluation.")
_PLOTS = flags.DEFINE_list("plots", [], "To draw: examples, curve, transfer (needs the extra plot).")
_SAVE_ADVERSARIAL = flags.DEFINE_bool("save_adversarial", False, "Write those of --sequential to adversarial.npz.")
_USE_BATCH_STATS = flags.DEFINE_bool(
    "use_batch_stats",
    False,
    "BatchNorm uses the batch's statistics: too lenient.",
)
_PLATFORM = flags.DEFINE_enum("platform", "", ["", "cpu", "gpu", "tpu"], "Where; empty for the best there is.")
_NUM_DEVICES = flags.DEFINE_integer("num_devices", 0, "How many devices; 0 for all.")
_PROGRESS = flags.DEFINE_bool("progress", None, "Show a bar; by default where stderr is a terminal.")

_GROUPS = {
    "Models": ["checkpoint=DIR[@STEP],..", "model=MODULE:FUNCTION,..", "surrogates=DIR[@STEP],.."],
    "Attacks": ["suite=NAME", "attacks=NAME,..", "sequential=NAME,..", "norm=linf|l2", "epsilon=X", "seed=N"],
    "Images": ["data=NAME|FILE.npz", "data_dir=DIR", "split=NAME", "num_examples=N", "channels=last"],
    "Report": ["output=DIR", "overwrite", "plots=NAME,..", "save_adversarial"],
    "How": ["batch_size=N", "platform=cpu|gpu|tpu", "num_devices=N", "[no]progress", "use_batch_stats"],
}


def main(argv):
    """Evaluates."""
    del argv
    if not _MODEL.value:
        cli.required("checkpoint", ",".join(_CHECKPOINT.value), "the workdir of a run, such as runs/digits")

    # Imported after the flags are checked, so that a mistake is reported before jax is loaded.
    from robust_gan import parallel
    from robust_gan.evaluation import statistics
    from robust_gan.reporting import run, tables

    try:
        scores, values = run.compare(
            _CHECKPOINT.value,
            models=_MODEL.value,
            sources=_SURROGATES.value,
            attacks=_ATTACKS.value,
            sequential=_SEQUENTIAL.value,
            suite=_SUITE.value,
            dataset=_DATA.value,
            split=_SPLIT.value,
            count=_NUM_EXAMPLES.value,
            norm=_NORM.value,
            epsilon=_EPSILON.value,
            batch_size=_BATCH_SIZE.value,
            seed=_SEED.value,
            devices=parallel.find_devices(_PLATFORM.value, _NUM_DEVICES.value),
            data_dir=_DATA_DIR.value,
            channels=_CHANNELS.value,
            output=_OUTPUT.value,
            overwrite=_OVERWRITE.value,
            pictures=_PLOTS.value,
            save_adversarial=_SAVE_ADVERSARIAL.value,
            use_batch_stats=_USE_BATCH_STATS.value,
            progress=_PROGRESS.value,
        )
        unwritten = ""
    except run.UnwrittenError as error:
        scores, values, unwritten = error.scores, error.values, str(error)
    if not parallel.is_primary():
        return 0
    threat, data = values["threat"], values["data"]
    print(f"{data['name']} {data['split']}, {data['count']} images, {threat['norm']} epsilon {threat['epsilon']:g}")
    if _USE_BATCH_STATS.value:
        print(tables.USE_BATCH_STATS)
    print(f"Accuracy in %; {statistics.INTERVALS}.")
    print(tables.white_and_black_box(scores))
    if len(scores.makers) > 1:
        print("\nBy source (*white box*):")
        print(tables.by_source(scores))
    if table := tables.sequential(values):
        print(f"\nSequential evaluation, each attack on the examples that remained robust:\n{table}")
    if table := tables.paired_comparisons(values):
        print(f"\nPaired comparisons, in points:\n{table}")
    print(f"\nAlarms:\n{tables.format_alarms(values)}")
    if notes := tables.format_notes(values):
        print(f"\nNot made:\n{notes}")
    if unwritten:
        return cli.complain(unwritten)
    if _OUTPUT.value:
        print(f"\nReport: {_OUTPUT.value.rstrip('/')}/{tables.TABLES}, and the same as {tables.RECORD}")
    return 0


def run() -> NoReturn:
    """Runs the command and exits."""
    cli.run(main, document=__doc__, groups=_GROUPS, spread=True, pod=True)
