"""Programs of more than one process, each with devices of its own, under `jax.distributed`.

All processes run the same program. What a process cannot see, another one holds, so that
each has to take part where it is fetched; and no process may go on alone, or stop alone.
"""

import contextlib
import hashlib
from collections.abc import Generator, Iterator
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def is_shared(*values: Any) -> bool:
    """Whether an array in `values` has parts on the devices of other processes, as far as
    that is known: outside `jit`."""
    return any(
        isinstance(x, jax.Array)
        and not isinstance(x, jax.core.Tracer)
        and not x.is_fully_addressable
        for x in jax.tree.leaves(values)
    )


def on_host(x: Any) -> np.ndarray:
    """An array, on the host of each process. If other processes hold parts of it, all of
    them must call this."""
    if is_shared(x) and not x.is_fully_replicated:
        whole = NamedSharding(x.sharding.mesh, PartitionSpec())
        x = jax.jit(lambda x: x, out_shardings=whole)(x)
    return np.asarray(x)


def spans_processes(mesh: Mesh) -> bool:
    """Whether the mesh has devices of other processes."""
    return any(x.process_index != jax.process_index() for x in mesh.devices.flat)


@contextlib.contextmanager
def together(what: str, *, is_shared: bool) -> Generator[None]:
    """A context that all processes leave, or none: where it fails in one of them, it raises
    in all. `what` says what they do there, and `is_shared` whether they do it together.

    **Raises** `RuntimeError` in those where it did not fail.
    """
    if not is_shared:
        yield
        return
    try:
        yield
    except Exception:
        _from_all(np.ones(()))
        raise
    failed = np.flatnonzero(_from_all(np.zeros(())))
    if len(failed):
        raise RuntimeError(
            f"{what} failed in process {failed[0]}, which says why; this is process "
            f"{jax.process_index()}."
        )


def check_same(message: str, *values: bytes) -> None:
    """Checks that `values` are the same in all processes.

    **Raises** `ValueError(message)`, in all of them, if not.
    """
    digest = hashlib.blake2b(digest_size=32)
    for value in values:
        digest.update(len(value).to_bytes(8, "little") + value)
    found = _from_all(np.frombuffer(digest.digest(), np.uint8))
    if np.any(found != found[0]):
        raise ValueError(message)


def own_bytes(tree: Any) -> Iterator[bytes]:
    """The arrays in `tree` that this process has to itself, or of which each device has a
    copy."""
    for x in jax.tree.leaves(tree):
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        if isinstance(x, np.ndarray) or (
            isinstance(x, jax.Array)
            and not isinstance(x, jax.core.Tracer)
            and (x.is_fully_addressable or x.is_fully_replicated)
        ):
            yield str((x.shape, x.dtype)).encode() + np.asarray(x).tobytes()


def _from_all(x: np.ndarray) -> np.ndarray:
    """`x` of each process, in their order."""
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(x)).reshape(-1, *x.shape)
