"""Where arrays live: on the one device, or with the batch split over all local ones."""

from typing import Any

import jax
import numpy as np
from absl import logging

_AXIS = 'batch'


class Placement:
    """Data parallelism by sharding: state on every device, batch split; XLA adds the all-reduce.

    Args:
      devices: those to use; all local ones if None.
    """

    def __init__(self, devices: list | None = None):
        self.devices = devices or jax.local_devices()
        self._warned = False
        mesh = jax.sharding.Mesh(np.array(self.devices), (_AXIS,))
        self._copied = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self._split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, _AXIS))

    @property
    def description(self) -> str:
        """Number and kind of the devices."""
        return f'{len(self.devices)} x {self.devices[0].device_kind}'

    def state(self, tree: Any) -> Any:
        """Puts `tree` on every device."""
        return jax.device_put(tree, None if len(self.devices) == 1 else self._copied)

    def again(self, state: Any) -> Any:
        """Puts `state` back where it was, wherever the compiler placed parts of it."""
        return state if len(self.devices) == 1 else jax.device_put(state, self._copied)

    def batches(self, tree: Any) -> Any:
        """Puts inputs [steps, batch, ...] on the devices, axis 1 split if it can be."""
        if len(self.devices) == 1:
            return jax.device_put(tree)
        fits = jax.tree.map(
            lambda x: np.ndim(x) > 1 and np.shape(x)[1] % len(self.devices) == 0, tree
        )
        if not any(jax.tree.leaves(fits)) and not self._warned:
            self._warned = True
            logging.warning(
                '%d devices divide axis 1 of no input (shapes %s); each computes the whole batch. '
                'Choose a batch size that is a multiple of %d.',
                len(self.devices),
                [np.shape(x) for x in jax.tree.leaves(tree)],
                len(self.devices),
            )
        return jax.tree.map(
            lambda x, fit: jax.device_put(x, self._split if fit else self._copied), tree, fits
        )

    def gather(self, state: Any) -> Any:
        """Puts `state` on one device, for code that knows of no others."""
        return state if len(self.devices) == 1 else jax.device_put(jax.device_get(state))


def use_compilation_cache(folder) -> None:
    """Keeps compiled programs in `folder`, so that the next start does not compile again."""
    jax.config.update('jax_compilation_cache_dir', str(folder))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', 0)
