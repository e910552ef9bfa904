"""Several processes in one compile: each computes a share of the batches and rows, and all get the same bits.

Sums of floats depend on the order. So batches belong to a fixed number of shards, for any number of processes;
a shard is summed by one process, batch by batch, and the shards are added up along one fixed tree:

    ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))        2 processes: one half each, then one sum

One process does exactly that by itself. The bits of one batch are those of one process as long as all have as many
threads: kernels of torch choose how they split their sums by the number of threads. Launchers give each process one
thread when there are several; `processes` does the same where there is one, so that the number of processes alone never
shows.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from qcompiler.storage.tensors import row_major

T = TypeVar("T")

SHARDS = 8
"""Number of shards, which are summed separately. Further processes would have nothing to sum."""


@dataclass(frozen=True)
class Processes:
    """The processes of one compile; a single process by default.

    Args:
        rank: Number of this process.
        count: Number of processes.
        group: Process group for communication; None for a single process.
    """

    rank: int = 0
    count: int = 1
    group: dist.ProcessGroup | None = None

    def owns(self, index: int) -> bool:
        """Whether batch, or piece of work, number `index` is for this process."""
        return self.owner(index) == self.rank

    def owner(self, index: int) -> int:
        """The process that batch, or piece of work, number `index` is for."""
        return self._owner(index % SHARDS)

    def _owner(self, shard: int) -> int:
        return shard * self.count // SHARDS if self.count <= SHARDS else shard

    def sum(self, batches: int, part: Callable[[int], Sequence[Tensor] | None]) -> list[Tensor]:
        """Add up the results of all batches in one order, for any number of processes.

        Args:
            batches: Number of batches over all processes.
            part: Function from the number of a batch to tensors of one shape and type; called for the batches that this
                process owns.

        Returns:
            The sums, equal in all processes.
        """
        total = self._tree(0, SHARDS, batches, part)
        assert total is not None, "there is at least one batch"
        return total

    def _tree(
        self, low: int, high: int, batches: int, part: Callable[[int], Sequence[Tensor] | None]
    ) -> list[Tensor] | None:
        """The sum of the shards from `low` to before `high`; None if they have no batch."""
        if low >= batches:
            return None
        owner = self._owner(low)
        if self._owner(high - 1) == owner:
            total = self._local(low, high, batches, part) if owner == self.rank else None
            return total if self.group is None else self.share(total, owner)
        middle = (low + high) // 2
        return _added(self._tree(low, middle, batches, part), self._tree(middle, high, batches, part))

    def _local(
        self, low: int, high: int, batches: int, part: Callable[[int], Sequence[Tensor] | None]
    ) -> list[Tensor] | None:
        if high - low > 1:
            middle = (low + high) // 2
            return _added(self._local(low, middle, batches, part), self._local(middle, high, batches, part))
        total: list[Tensor] | None = None
        for index in range(low, batches, SHARDS):
            total = _added(total, part(index))
        return total

    def share(self, tensors: Sequence[Tensor] | None, owner: int) -> list[Tensor]:
        """Send a value from process `owner` to all processes."""
        if self.group is None:
            assert tensors is not None
            return list(tensors)
        shapes: list[object] = [None if tensors is None else [(x.shape, x.dtype) for x in tensors]]
        dist.broadcast_object_list(shapes, src=owner, group=self.group)
        described = shapes[0]
        assert isinstance(described, list)
        result = (
            [row_major(x) for x in tensors]
            if tensors is not None
            else [torch.empty(shape, dtype=dtype) for shape, dtype in described]
        )
        for tensor in result:
            dist.broadcast(tensor, src=owner, group=self.group)
        return result

    def gather(self, item: T) -> list[T]:
        """Gather the value of each process, ordered by process number."""
        if self.group is None:
            return [item]
        found: list[T | None] = [None] * self.count
        dist.all_gather_object(found, item, group=self.group)
        return [part for part in found if part is not None]


def _added(a: Sequence[Tensor] | None, b: Sequence[Tensor] | None) -> list[Tensor] | None:
    if a is None or b is None:
        one = a if b is None else b
        return None if one is None else list(one)
    return [x + y for x, y in zip(a, b, strict=True)]


_GROUPS = itertools.count()


@functools.cache
def _meeting_point() -> tuple[dist.Store, int, int]:  # type: ignore[name-defined]
    """The store named by the launcher in the environment, the number of this process, and the number of processes."""
    store, rank, size = next(rendezvous("env://"))
    return store, rank, size


@contextlib.contextmanager
def processes() -> Iterator[Processes]:
    """The processes of a launcher such as torchrun, on the gloo backend, for as long as the block runs.

    An existing process group is used through its own subgroup, and stays.
    """
    launched = dist.is_available() and dist.is_torchelastic_launched()
    if not dist.is_available() or not (dist.is_initialized() or launched or int(os.environ.get("WORLD_SIZE", "1")) > 1):
        yield Processes()
        return
    ours = not dist.is_initialized()
    if ours:
        store, rank, size = _meeting_point()
        # Entries that an earlier group left in the store must not be read.
        store = dist.PrefixStore(f"qcompiler-{next(_GROUPS)}", store)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    count, threads = dist.get_world_size(), torch.get_num_threads()
    group = cast("dist.ProcessGroup", dist.new_group(backend="gloo")) if count > 1 else None
    if launched and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # noqa: TID251 - put back below
    try:
        yield Processes(dist.get_rank(), count, group)
    finally:
        torch.set_num_threads(threads)  # noqa: TID251
        if ours:
            dist.destroy_process_group()
