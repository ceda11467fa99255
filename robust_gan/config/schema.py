"""The typed configuration of a run: nested dataclasses, whose defaults are the game on digits."""

import dataclasses

NORMS = ("linf", "l2")
OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("piecewise", "cosine", "one_cycle")
ADVERSARIES = ("none", "fgsm", "pgd", "ensemble", "generator")
CLASSIFIER_LOSSES = ("cross_entropy", "trades", "ibp")
ATTACK_LOSSES = ("cross_entropy", "kl", "margin")
FGSM_STARTS = ("random", "noise")
ENSEMBLE_SCHEMES = ("paper", "tramer")
GENERATOR_INPUTS = ("gradient", "perturbation", "label")
PARAMETRIZATIONS = ("clip", "rescale")
GENERATOR_STARTS = ("none", "uniform", "vertex", "noise", "memory")
PENALTY_FORMS = ("exact", "finite_difference")
BATCH_NORM_MODES = ("batch", "running")
AUGMENTATIONS = ("none", "crop", "crop_flip")
PRECISIONS = ("float32", "bfloat16")
PLAYERS = ("both", "classifier")


@dataclasses.dataclass
class DataConfig:
    """The images.

    Attributes:
        name: A TFDS data set: digits, mnist, cifar10, cifar100, svhn_cropped, or any prepared as array_record; or files
            of your own, `FILE.npz`, `IMAGES.npy,LABELS.npy`, or a folder with one per class.
        data_dir: The folder of the prepared data; empty for the default of TFDS.
        validation_size: Images held out of the training split for model selection; the test split is never touched.
        train_size: Use this many training images only; 0 for all.
        extra_size: Images of SVHN's `extra` split added to training.
        augmentation: `none`, `crop` or `crop_flip`.
        padding: Pixels of zero padding on each side before a random crop.
        image_size: Crop and resize the images of a folder to this height and width; 0 for as they are.
    """

    name: str = "digits"
    data_dir: str = ""
    validation_size: int = 180
    train_size: int = 0
    extra_size: int = 0
    augmentation: str = "none"
    padding: int = 2
    image_size: int = 0


@dataclasses.dataclass
class ThreatConfig:
    """The threat model.

    Attributes:
        norm: `linf` or `l2`.
        epsilon: Radius of the ball, in units of the [0, 1] pixel range: `8 / 255`, not 8.
    """

    norm: str = "linf"
    epsilon: float = 0.15


@dataclasses.dataclass
class OptimizerConfig:
    """The optimiser of one player.

    Attributes:
        name: `sgd` (with momentum), `adam` or `adamw`.
        learning_rate: The rate at step 0.
        momentum: The momentum of sgd.
        b1: The decay of the first moment, of adam and adamw.
        b2: The decay of the second moment, of adam and adamw.
        weight_decay: On kernels alone, never on biases or BatchNorm. For sgd and adam it is the gradient of
            `weight_decay / 2 * ||w||^2` (the released code's loss term); for adamw it is decoupled.
        schedule: `piecewise`: the rate is multiplied by `decay_factor` after each of `decay_steps`; `cosine`: half a
            cosine down to 0 at `schedule_steps`; `one_cycle`: up in a straight line to `learning_rate` at 40 % of
            `schedule_steps`, and down to 0 at their end.
        decay_steps: For `piecewise`: steps of this optimiser.
        decay_factor: For `piecewise`.
        restart_momentum: For sgd: whether the momentum restarts from 0 at each of `decay_steps`, as in the released
            code, where a second optimiser takes over.
        schedule_steps: For `cosine` and `one_cycle`: steps of this optimiser. It is a field of its own, so that a run
            that is made longer by `num_steps` does not change what it did before.
    """

    name: str = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0
    schedule: str = "piecewise"
    decay_steps: tuple[int, ...] = ()
    decay_factor: float = 0.1
    restart_momentum: bool = False
    schedule_steps: int = 0


@dataclasses.dataclass
class IBPConfig:
    """The certified term of the classifier's loss `ibp`: the cross-entropy of bounds of the logits.

    Attributes:
        weight: Its share of the loss at the end; the other terms have the rest.
        epsilon: Radius of the bounds at the end; 0 for `threat.epsilon`. A larger one is usual on MNIST: 0.4 for 0.3.
        warmup_steps: Training steps without the term.
        ramp_steps: Steps after these over which the radius and the share grow in a straight line.
    """

    weight: float = 0.5
    epsilon: float = 0.0
    warmup_steps: int = 0
    ramp_steps: int = 0


@dataclasses.dataclass
class ClassifierConfig:
    """The classifier (the released code's discriminator) and its loss.

    Attributes:
        network: A name of `networks.CLASSIFIERS`, or `package.module:function`, which returns a `Network`; the function
            takes any of `num_classes` and `dtype`.
        optimizer: Its optimiser.
        loss: `cross_entropy`, on clean and on adversarial images; or `trades`: on clean images, and the divergence
            KL(clean || adversarial) of the predictions in place of the adversarial term (Zhang et al. 2019); or `ibp`:
            the cross-entropy, and that of interval bounds, see `IBPConfig` (Gowal et al. 2018).
        clean_weight: Weight of the cross-entropy on clean images; 0 trains on adversarial images alone.
        adversarial_weight: Weight of the adversarial term; beta of TRADES, where 6 is usual.
        label_smoothing: Share of the label's probability that is spread over all classes in the classifier's
            cross-entropy; the adversary attacks the unsmoothed one.
        consistency: Coefficient of a further term: the squared Euclidean distance between the probabilities that the
            classifier gives to the clean and to the adversarial image, as in guided adversarial training (Sriramanan
            et al. 2020); 0 for none.
        awp_gamma: Adversarial weight perturbation (Wu et al. 2020): the size, relative to each kernel, of
            the step against itself at which the classifier takes its gradient; 0.005 is usual, 0 is none.
        ema_decay: Decay of an exponential moving average of the weights, which is then validated and evaluated; 0 is
            none.
        attack_bn_mode: BatchNorm statistics of the classifier *while it is attacked in training*: `batch`, those
            of the attacked batch, as the released code does, or `running`. At test it is always `running`.
        ibp: Read when `loss` is `ibp`.
    """

    network: str = "digits_cnn"
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    loss: str = "cross_entropy"
    clean_weight: float = 1.0
    adversarial_weight: float = 1.0
    label_smoothing: float = 0.0
    consistency: float = 0.0
    awp_gamma: float = 0.0
    ema_decay: float = 0.0
    attack_bn_mode: str = "batch"
    ibp: IBPConfig = dataclasses.field(default_factory=IBPConfig)


@dataclasses.dataclass
class FGSMConfig:
    """One gradient step as the adversary of training, in a variant without catastrophic overfitting.

    Attributes:
        start: `random`: from a random point of the ball, back into the ball (Wong et al. 2020); `noise`: from noise of
            twice epsilon, and no clipping to the ball (N-FGSM, de Jorge et al. 2022).
        step_size: In units of epsilon.
    """

    start: str = "random"
    step_size: float = 1.25


@dataclasses.dataclass
class PGDConfig:
    """Projected gradient descent as the adversary of training.

    Attributes:
        num_steps: Gradient steps.
        step_size: In the unit of epsilon; 0 for 2.5 epsilon / num_steps.
        loss: The loss that it maximises: `cross_entropy`, `margin`, or `kl`, the divergence from the clean prediction
            (TRADES).
        keep_best: Whether the classifier learns from the point of the highest loss, or from the last, as in the
            released code.
    """

    num_steps: int = 10
    step_size: float = 0.0
    loss: str = "cross_entropy"
    keep_best: bool = True


@dataclasses.dataclass
class EnsembleConfig:
    """Frozen, trained classifiers as the adversary: ensemble adversarial training.

    Attributes:
        sources: Checkpoints `DIR[@STEP]`, exported files or `zoo:NAME`; of the same images and classes.
        scheme: `paper`: each image is attacked on the first source in one of three ways, by FGSM on the predicted
            label, by PGD on the true one, or towards the least likely class; `tramer`: each batch is attacked by FGSM
            on one of the sources or on the classifier itself, drawn at random (Tramer et al. 2018).
        pgd_steps: Of PGD in `paper`.
        keep_best: Whether PGD in `paper` returns the best point seen, or the last, as in the released code.
        clean_share: Share of the images that stay clean; the released code has 1/4, with `classifier.clean_weight` 0.
    """

    sources: tuple[str, ...] = ()
    scheme: str = "paper"
    pgd_steps: int = 10
    keep_best: bool = True
    clean_share: float = 0.0


@dataclasses.dataclass
class GeneratorConfig:
    """The generator as the adversary of training: image-only by default.

    Attributes:
        network: A name of `networks.GENERATORS`, or `package.module:function`, which returns a `Network`; the function
            takes any of `channels`, `dtype` and `remat`.
        optimizer: Its optimiser.
        steps: Generator steps on each batch.
        update_every: Training steps per update of the generator, which takes `steps` steps on every `update_every`-th
            batch and attacks the others as it is.
        batches_per_step: Batches per classifier step; the classifier learns from the last. 5 in the released code
            for MNIST, otherwise 1.
        inputs: Its inputs beside the image, of `gradient` (of the classifier's loss in the pixels), `perturbation`
            (so far) and `label`.
        num_refinements: How often it is applied to each image; each perturbation replaces the one before.
        latent_size: Random input channels, in [0, 1].
        diversity: Coefficient of the mean distance between two perturbations of an image, in units of epsilon, over
            that of their random inputs; the generator is rewarded for it.
        final_fgsm_step: Length, in units of epsilon, of a last step along the sign of the gradient; 0 for none.
        start: Where it is first applied: `none`, at the image; `uniform`, at a random point of the ball; `vertex`, at
            a random corner of it (L-infinity only); `noise`: in training, at the image with noise of up to twice
            epsilon, around which the ball then is, as in N-FGSM; or `memory`: in training, at the image with its
            perturbation of the epoch before, a byte per value of the training split on each device and in each
            checkpoint.
        parametrization: `clip`: clip to valid pixels; `rescale`: map the noise onto the box of valid pixels
            (L-infinity only).
        remat: Whether its backward pass recomputes the inside of each layer and block, with a third more work and less
            memory.
    """

    network: str = "digits_generator"
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(name="adam", learning_rate=0.002, b1=0.5)
    )
    steps: int = 5
    update_every: int = 1
    batches_per_step: int = 1
    inputs: tuple[str, ...] = ()
    num_refinements: int = 1
    latent_size: int = 0
    diversity: float = 0.0
    final_fgsm_step: float = 0.0
    start: str = "none"
    parametrization: str = "clip"
    remat: bool = False


@dataclasses.dataclass
class AdversaryConfig:
    """The maximising player.

    Attributes:
        name: `none`, `fgsm`, `pgd`, `ensemble`, `generator`, or `package.module:function`, which returns an
            `Adversary`; the function takes any of `config` (this one), `threat`, `num_classes` and `channels`.
        epsilon_warmup_steps: Training steps over which the radius grows in a straight line up to epsilon; 0 for none.
            Where epsilon is large, as on MNIST, training on adversarial images alone fails without it.
        fgsm: Read when `name` is `fgsm`.
        pgd: Read when `name` is `pgd`.
        ensemble: Read when `name` is `ensemble`.
        generator: Read when `name` is `generator`.
    """

    name: str = "generator"
    epsilon_warmup_steps: int = 0
    fgsm: FGSMConfig = dataclasses.field(default_factory=FGSMConfig)
    pgd: PGDConfig = dataclasses.field(default_factory=PGDConfig)
    ensemble: EnsembleConfig = dataclasses.field(default_factory=EnsembleConfig)
    generator: GeneratorConfig = dataclasses.field(default_factory=GeneratorConfig)


@dataclasses.dataclass
class PenaltyConfig:
    """The gradient penalty R = 1/2 ||grad_phi CE||^2, added to the classifier's loss as + coefficient * R.

    Attributes:
        coefficient: Positive damps the game; negative is what the released code computes; 0 is none, at no cost.
        form: `exact`, or `finite_difference` as in the released code.
        step: Size h of the finite difference.
        decay: Whether the finite difference steps along the gradient of the generator's weight decay too, as in the
            released code; with the form `finite_difference` alone.
    """

    coefficient: float = 0.0
    form: str = "exact"
    step: float = 0.01
    decay: bool = False


@dataclasses.dataclass
class ValidationConfig:
    """Validation during training.

    Attributes:
        every: Training steps between validations; also between checkpoints.
        size: Images; 0 for the whole split.
        batch_size: Images at once.
        pgd_steps: Steps of the PGD attack whose robust accuracy chooses the best checkpoint.
        attacks: Further attacks, names separated by commas, such as `margin_pgd10,square500`. The best checkpoint then
            has the most images that withstand each of them and PGD, so that one with masked gradients is not chosen.
        patience: Validations without a new best after which training stops; 0 for never.
    """

    every: int = 500
    size: int = 0
    batch_size: int = 500
    pgd_steps: int = 10
    attacks: str = ""
    patience: int = 0


@dataclasses.dataclass
class Config:
    """One training run.

    Attributes:
        seed: Of the initialisation, the order of the images, their augmentation and the adversary.
        data: The images.
        threat: The threat model of training and validation.
        classifier: The minimising player.
        adversary: The maximising player.
        penalty: The gradient penalty.
        batch_size: Images in a batch, over all devices.
        precision: The type in which the inner layers of both players compute in training: `float32`, or `bfloat16` with
            float32 parameters, statistics, losses, images and perturbations. Validation and evaluation are in float32.
        num_steps: Classifier steps.
        steps_per_call: Most steps in one call of the compiled program; 0 for one on a CPU and all between two lines of
            metrics on an accelerator. It changes no bit of the result.
        log_every: Steps between lines of metrics.
        validation: Validation during training.
        max_to_keep: Newest checkpoints kept, beside the best.
        init_from: A checkpoint `DIR[@STEP]`, an exported file or `zoo:NAME`, whose weights the run starts from; empty
            for random ones. Optimisers start anew; so does the last layer where the number of classes differs.
        init_players: `both`: the classifier, and the generator where both runs have one; or `classifier`.
    """

    seed: int = 0
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    threat: ThreatConfig = dataclasses.field(default_factory=ThreatConfig)
    classifier: ClassifierConfig = dataclasses.field(default_factory=ClassifierConfig)
    adversary: AdversaryConfig = dataclasses.field(default_factory=AdversaryConfig)
    penalty: PenaltyConfig = dataclasses.field(default_factory=PenaltyConfig)
    batch_size: int = 64
    precision: str = "float32"
    num_steps: int = 1000
    steps_per_call: int = 0
    log_every: int = 50
    validation: ValidationConfig = dataclasses.field(default_factory=ValidationConfig)
    max_to_keep: int = 2
    init_from: str = ""
    init_players: str = "both"


CHANGEABLE = ("num_steps", "steps_per_call", "log_every", "max_to_keep", "data.data_dir", "validation.patience")
"""Fields in which a resumed run may differ from the one it continues: no step depends on them."""
