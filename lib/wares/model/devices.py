"""Where a rank computes: on a GPU of its own where the machine has one for it, else on the processor."""

from __future__ import annotations

import horovod.tensorflow as hvd
import keras
import tensorflow as tf

from wares.errors import ModelError
from wares.settings import Train

CPU = "/CPU:0"


def use_device(settings: Train) -> None:
    """Take the GPU that has this rank's number among the ranks of its machine, and no more of its memory than is needed; and
    compute in the precision that the settings name. To be called before TensorFlow computes anything.

    Ranks without NCCL share the GPUs where there are more ranks than GPUs.

    Raises:
        ModelError: NCCL is asked for, and Horovod lacks it, or there is not one GPU for each rank.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if settings.nccl and not hvd.nccl_built():
        raise ModelError(
            "Horovod cannot use NCCL.",
            found="train.nccl: true, and a Horovod that was built without it",
            do="build it with HOROVOD_GPU_OPERATIONS=NCCL (README, On GPUs), or set train.nccl: false",
        )
    if settings.nccl and len(gpus) < hvd.local_size():
        raise ModelError(
            "NCCL needs one GPU for each rank.",
            found=f"{hvd.local_size()} ranks and {len(gpus)} GPUs on this machine",
            do="lower train.ranks, or set train.nccl: false",
        )
    if gpus:
        mine = gpus[hvd.local_rank() % len(gpus)]
        tf.config.set_visible_devices(mine, "GPU")
        tf.config.experimental.set_memory_growth(mine, True)
    keras.config.set_dtype_policy(settings.precision)


def place_of_exchange(settings: Train) -> str:
    """Where gradients are averaged: "" leaves it to Horovod, which takes the GPU."""
    return "" if settings.nccl else CPU
