"""Ranks that join and leave a training: the worker's side of Horovod's elastic mode."""

from __future__ import annotations

import threading
from collections.abc import Callable

import horovod.tensorflow as hvd
import keras
import tensorflow as tf
from horovod.common.elastic import notification_manager

LOOK_STEPS = 10
"""After how many steps the ranks ask each other whether there are to be others, which costs them an exchange of one number."""


class RanksChanged(Exception):
    """Other ranks are to go on from the checkpoint that was just left."""


class Changes:
    """Hears from horovodrun, which tells rank 0 alone, that there may be other ranks."""

    def __init__(self) -> None:
        self._told = threading.Event()
        notification_manager.init()
        notification_manager.register_listener(self)

    def on_hosts_updated(self, timestamp: int, result: int) -> None:
        """Horovod calls this from a thread of its own."""
        self._told.set()

    def are_due(self) -> bool:
        """Whether the ranks are to begin anew. All ask at the same step, and all hear the same."""
        due = bool(hvd.broadcast(tf.constant(int(self._told.is_set())), root_rank=0))
        # What is told from here on may come too late for the next start, and is kept for the one after.
        if due:
            self._told.clear()
        return due


def again_with_other_ranks(work: Callable[[Changes], None]) -> None:
    """Do some work to its end, from its beginning whenever a rank has left, joined or died.

    Not `hvd.elastic.run`, to which an error of TensorFlow that is not Horovod's is the end of the work.
    """
    changes = Changes()
    while True:
        try:
            return work(changes)
        except RanksChanged:
            pass
        except tf.errors.OpError as error:  # a rank died in the midst of an exchange
            if "Horovod" not in str(error):
                raise
        hvd.shutdown()
        keras.utils.clear_session()  # exchanges find each other by names, which a new rank counts from the beginning
        hvd.init()  # where there is no place for this rank any more, Horovod aborts its process here
