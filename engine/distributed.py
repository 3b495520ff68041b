"""Joins torchrun's process group, and gathers tensors over one process or many for training and evaluation.

Shapes: W processes, B rows of the global batch, b = B/W rows of this process, N items of a split, E embedding.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from modules.rows import Rows, join, map_rows

COLLECTIVE_TIMEOUT = timedelta(minutes=15)


@dataclass(frozen=True)
class Process:
    """This process's rank among all processes, and the device it computes on."""

    rank: int
    world_size: int
    device: torch.device
    control: dist.ProcessGroup | None = None  # a gloo group, so that processes can agree without waiting for the GPU

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true on any process; all processes call this together."""
        if self.control is None:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.control)
        return bool(flags)

    def fail_together(self, error: Exception | None) -> None:
        """Raise on all processes if one has an error, so that no process waits; all processes call this together."""
        if self.any(error is not None):
            messages = self.share(None if error is None else str(error))
            raise error or ValueError(next(message for message in messages if message is not None))

    def on_main(self, function: Callable[[], Any]) -> Any:
        """Call a function on the main process; all processes call this together, and a ValueError or OSError is raised
        on all. Returns its result; None on the other processes."""
        result, error = None, None
        if self.is_main:
            try:
                result = function()
            except (ValueError, OSError) as caught:
                error = caught
        self.fail_together(error)
        return result

    def share(self, value: Any) -> list[Any]:
        """Return the values of all processes, in rank order; all processes call this together."""
        if self.control is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values


@contextmanager
def process_group() -> Iterator[Process]:
    """Join the group from torchrun's environment (nccl on CUDA, gloo on CPU); without torchrun, run alone."""
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"torchrun started a process for GPU {local_rank}, but this machine has {torch.cuda.device_count()}; "
                "lower --nproc_per_node (NGPU in the scripts)"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if "RANK" not in os.environ:
        yield Process(0, 1, device)
        return
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=_own_store(rank), rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT
    )
    try:
        control = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
        assert isinstance(control, dist.ProcessGroup)
        yield Process(rank, world_size, device, control)
    finally:
        dist.destroy_process_group()


def _own_store(rank: int) -> dist.Store:
    """Return the store where the processes find each other. Each attempt has separate keys in it, because torchrun
    keeps its store over restarts, with the addresses of dead processes."""
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
        timeout=COLLECTIVE_TIMEOUT,
    )
    return dist.PrefixStore(f"attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def gather(rows: torch.Tensor) -> torch.Tensor:
    """Gather `[b,...]` from every process into `[B,...]` in rank order, without gradient; b is the same everywhere."""
    if not dist.is_initialized():
        return rows
    gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)


class _GatherRows(torch.autograd.Function):
    """Gathers all ranks' rows in rank order; `gather_with_gradient` describes its backward."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor, sum_over_ranks: bool) -> torch.Tensor:  # type: ignore[override]
        ctx.count, ctx.sum_over_ranks = len(rows), sum_over_ranks
        return gather(rows)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        if ctx.sum_over_ranks:
            gradient = gradient.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(gradient)
        start = dist.get_rank() * ctx.count
        return gradient[start : start + ctx.count], None


def gather_with_gradient(rows: torch.Tensor, gradient: str = "sum") -> torch.Tensor:
    """Gather `[b,E]` from every process into `[B,E]` in rank order, with gradient; b is the same everywhere.

    Each of W processes computes the loss of the global batch, and DDP averages their gradients. With `gradient` "sum",
    the backward first sums over ranks, which gives the gradient of one process on the global batch. With "own", a rank
    keeps only its slice of the gradient of its own loss, like CLIP4Clip's code and its successors. That is 1/W of the
    "sum" gradient, except for a trained temperature, which is applied after the gather.
    """
    if not dist.is_initialized():
        return rows
    return _GatherRows.apply(rows, gradient == "sum")


def mean_over_processes(loss: torch.Tensor) -> torch.Tensor:
    """Return the mean of a scalar over processes; the gradient is that of this process's value, and DDP averages it."""
    if not dist.is_initialized():
        return loss
    total = loss.detach().clone()
    dist.all_reduce(total)
    return loss + (total / dist.get_world_size() - loss.detach())


def gather_rows(rows: Rows, gradient: str = "sum") -> Rows:
    """Gather rows by `gather_with_gradient`, and their masks and lengths, which have no gradient, by `gather`."""
    return map_rows(
        lambda tensor: gather_with_gradient(tensor, gradient) if tensor.is_floating_point() else gather(tensor), rows
    )


def gather_by_id(rows: list[Rows], ids: list[torch.Tensor], total: int) -> Rows:
    """Combine the rows that all processes computed, each for its share of the items.

    Args:
        rows: batches `[n,...]` on the CPU, one row for each item of this process; no batch if its share is empty.
        ids: int64 batches `[n]`, the item of each row.
        total: N, the number of items.

    Returns:
        `[N,...]` on the CPU of every process, ordered by id.

    Raises:
        RuntimeError: an item came twice or not at all.
        ValueError: the rows of two batches have different shapes.
    """
    if dist.is_initialized():
        shards: list = [None] * dist.get_world_size()
        dist.all_gather_object(shards, (rows, ids))
        rows = [row for shard in shards for row in shard[0]]
        ids = [id_ for shard in shards for id_ in shard[1]]
    all_ids = torch.cat(ids)
    if not torch.equal(all_ids.sort().values, torch.arange(total)):
        raise RuntimeError(f"evaluation gathered {len(all_ids)} rows for {total} items: some came twice or not at all")
    order = all_ids.argsort()
    return map_rows(lambda tensor: tensor[order], join(rows))
