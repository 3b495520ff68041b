"""No step makes the host wait for the device."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from torch.utils._python_dispatch import TorchDispatchMode

from tests.engine.one_training import IN_OTHER_WAYS, every_switch, named, one_batch, one_training


class NoWaiting(TorchDispatchMode):
    """Raises an error for operations that would make the host wait if the tensors were on a GPU: reading their values,
    and making a tensor from numbers of the host."""

    WAITS = frozenset(
        {
            "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "lift_fresh",
            "_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive",
        }
    )  # fmt: skip
    INDEXING = frozenset({"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"})

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        waits = name in self.WAITS or str(func) == "aten.repeat_interleave.Tensor"
        if name in self.INDEXING:
            waits = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        assert not waits, f"{func} makes the host wait"
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting(monkeypatch) -> Iterator[None]:
    """Run a context under `NoWaiting`, and also refuse the accesses to values that it cannot see."""

    def refused(*_):
        raise AssertionError("makes the host wait")

    with monkeypatch.context() as patched, NoWaiting():
        for name in ("tolist", "numpy", "__array__"):
            patched.setattr(torch.Tensor, name, refused)
        patched.setattr("modules.stop.timing.surely_whole", lambda frame_mask: False)  # as on a GPU
        yield


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.tolist(),
        lambda x: np.asarray(x),
        lambda x: x.masked_select(x > 0),
        lambda x: x.index_put((x > 0,), torch.zeros(())),
        lambda x: x.repeat_interleave(torch.ones_like(x, dtype=torch.int64)),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: torch.equal(x, x),
        lambda x: x.unique(),
        lambda x: (x * x.detach().requires_grad_()).sum().backward(torch.tensor(1.0)),
    ],
)
def test_the_check_notices_waiting(monkeypatch, ask):
    x = torch.ones(3)
    ask(x)
    with no_waiting(monkeypatch), pytest.raises(AssertionError, match="makes the host wait"):
        ask(x)


# tc_clip merges the tokens of clips with equally many frames together, so the host reads how many each clip has.
WAITING = {"tc_clip"}


@pytest.mark.parametrize("name", sorted(WAITING))
def test_what_is_said_to_wait_waits(name, tmp_path, monkeypatch):
    run = one_training(name, torch.device("cpu"), tmp_path, precision="fp32")
    run.take_step(one_batch(0))
    with no_waiting(monkeypatch), pytest.raises(AssertionError, match="makes the host wait"):
        run.enqueue_step(one_batch(1))


def without_waiting() -> list[Any]:
    return [case for case in [*every_switch(), *IN_OTHER_WAYS] if case[0] not in WAITING]


@pytest.mark.parametrize(("name", "settings"), without_waiting(), ids=named)
def test_no_step_makes_the_host_wait(name, settings, tmp_path, monkeypatch):
    """Check the operators of a step on the CPU, from the copy of the batch to the result; the first step is left out,
    because it creates tensors that are kept."""
    run = one_training(name, torch.device("cpu"), tmp_path, **{"precision": "fp32"} | settings)
    batches = [one_batch(seed, run.task_step.method.reads_frame_captions) for seed in range(3)]
    run.take_step(batches[0])
    with no_waiting(monkeypatch):
        for batch in batches[1:]:
            run.enqueue_step(batch)
    run.results.check()
    assert run.step == 3
    assert np.isfinite(run.results.values["loss"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("name", "settings"), without_waiting(), ids=named)
def test_no_step_makes_the_host_wait_for_a_gpu(name, settings, tmp_path):
    run = one_training(name, torch.device("cuda"), tmp_path, **{"precision": "fp32"} | settings)
    batches = [one_batch(seed, run.task_step.method.reads_frame_captions) for seed in range(4)]
    batches = [{key: tensor.pin_memory() for key, tensor in batch.items()} for batch in batches]
    run.take_step(batches[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches[1:]:
            run.take_step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(run.results.waiting) == 1
    run.results.check()
    assert run.step == 4
    assert np.isfinite(run.results.values["loss"])
