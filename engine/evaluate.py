"""Encodes datasets for evaluation, for any task: each process encodes its share, then all rows are gathered by id."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from dataloaders.datasets import Batch, Item, make_evaluation_loader
from engine.distributed import Process, gather_by_id
from engine.errors import explained
from modules.methods import Method
from modules.rows import Rows, map_rows, to_float


@contextmanager
def evaluating(method: Method) -> Iterator[None]:
    """Run the context in evaluation mode without gradients; restore the method's mode at the end, even on an error."""
    was_training = method.training
    method.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        method.train(was_training)


@dataclass(frozen=True)
class Encoder:
    """Encodes datasets on all processes."""

    process: Process
    autocast: Callable[[], torch.autocast]  # makes the context in which encoders run
    batch_size: int  # items at once
    num_workers: int  # decoding processes
    prefetch_factor: int  # batches that each of them prepares ahead

    def __call__(
        self, dataset: Dataset[Item], encode: Callable[[Batch], Rows], name: str, workers: bool = True
    ) -> Rows:
        """Encode every item once, on one of the processes, and return all rows on the device of each process.

        All processes call this together. An error on one process is raised on all.

        Args:
            dataset: N items with an `index`, 0 to N - 1.
            encode: takes a batch of n items on the device and returns their rows, `[n,...]`.
            name: the label of the progress bar.
            workers: whether to use worker processes, which pay off only for items that are slow to read.

        Returns:
            Rows `[N,...]` ordered by `index`; floating-point tensors are fp32.
        """
        total = len(dataset)  # type: ignore[arg-type]
        share = range(self.process.rank, total, self.process.world_size)
        loader = make_evaluation_loader(
            dataset, self.batch_size, share, self.num_workers if workers else 0, self.process.device.type == "cuda",
            self.prefetch_factor,
        )  # fmt: skip
        rows: list[Rows] = []
        ids: list[torch.Tensor] = []
        error = None
        try:
            for batch in tqdm(loader, name, disable=not self.process.is_main, leave=False, dynamic_ncols=True):
                ids.append(batch["index"])
                here = {key: tensor.to(self.process.device, non_blocking=True) for key, tensor in batch.items()}
                with self.autocast():
                    encoded = encode(here)
                rows.append(map_rows(torch.Tensor.cpu, to_float(encoded)))
        except Exception as caught:  # the other processes must not wait for this one
            error = explained(caught) or caught
        self.process.fail_together(error)
        return map_rows(lambda tensor: tensor.to(self.process.device), gather_by_id(rows, ids, total))
