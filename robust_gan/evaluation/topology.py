"""The attacks of an evaluation compiled for TPUs that are not there."""

from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from robust_gan import parallel
from robust_gan.evaluation.models import RETRAINED
from robust_gan.evaluation.sharded_model import batch_width
from robust_gan.evaluation.subject import Subject
from robust_gan.parallel import topology as topology_lib
from robust_gan.parallel.devices import jit_batch


def compile_attacks(subject: Subject, batch_size: int, topology: str) -> Iterator[topology_lib.Compiled]:
    """Compiles every attack on every target for a topology, one after the other; no attack runs.

    Retrained generators are left out: the attack is known when its generator has been trained.

    Args:
        subject: As `evaluate.prepare` returned it.
        batch_size: Images at once, over all devices.
        topology: See `parallel.topology.find_topology`.

    Raises:
        UserError: As `find_topology`.
    """
    devices = topology_lib.find_topology(topology)
    width = batch_width(batch_size, len(subject.data.labels), devices)
    shape = (len(devices), width // len(devices))
    image_shape, attacks = subject.data.images.shape[1:], subject.attacks
    shares = (
        jax.ShapeDtypeStruct(shape, np.int32),
        jax.ShapeDtypeStruct((*shape, *image_shape), np.float32),
        jax.ShapeDtypeStruct(shape, np.int32),
    )
    for target in subject.targets:
        for name in dict.fromkeys((*attacks.names, *attacks.sequential)):
            if name in RETRAINED or not target.can(name):
                continue
            function, replicated = target.program(name, subject.threat)
            shapes = jax.eval_shape(lambda replicated=replicated: replicated)
            found = topology_lib.Compiled(topology, f"{name} on {target.name}", len(devices), width)
            mapped = jit_batch(function, Mesh(np.asarray(devices), (parallel.AXIS,)))
            yield topology_lib.compile_program(found, mapped, shapes, shares)
