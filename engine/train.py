"""The training loop for every task, method and data set."""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from dataloaders.datasets import Batch, make_training_loader
from dataloaders.sampler import EpochSampler
from engine.checkpoint import ResumePoints
from engine.clock import StepClock
from engine.compiling import compile_forward, compiler_error
from engine.config import OptimConfig
from engine.distributed import Process
from engine.errors import explained
from engine.gradients import LOOK_AFTER, SHOWN, idle, unreached
from engine.interrupt import Interrupted, stop_requested
from engine.logger import RunLogger, log
from engine.optim import Schedule, build_optimizer, leave_eps_uncorrected
from engine.precision import random_state, set_random_state
from engine.step_results import StepResults
from engine.tasks.base import TaskStep, TrainingItems
from modules.clip import Block
from modules.quoting import some


class Training:
    """The state of a training: step, optimiser, schedule and position, with saving and restoring."""

    def __init__(
        self,
        step: TaskStep,
        items: TrainingItems,
        sampler: EpochSampler,
        settings: OptimConfig,
        process: Process,
        logger: RunLogger,
        *,
        seed: int,
        num_workers: int,
        prefetch_factor: int,
    ) -> None:
        """Build the optimiser and the loader; raises ValueError if --compile is passed and does not work here."""
        self.task_step, self.items, self.sampler = step, items, sampler
        self.settings, self.process, self.logger = settings, process, logger
        pin_memory = process.device.type == "cuda"
        self.loader = make_training_loader(items, sampler, num_workers, pin_memory, prefetch_factor)
        self.total_steps = settings.epochs * len(sampler)
        self.step = 0
        self.results = StepResults(items, process.rank, scaled=settings.precision == "fp16")
        # The newest result stays unchecked, so that a GPU has a step to work on while the host checks the previous one.
        self.lag = 1 if process.device.type == "cuda" else 0
        self.all_reached = self.looked_for_idle = False

        for block in step.method.modules():
            if isinstance(block, Block):
                block.recompute = settings.activation_checkpointing
        if settings.compile:
            process.fail_together(compiler_error(process.device))
            compile_forward(step.method)
        groups = step.parameter_groups(settings.lr, settings.coef_lr, settings.weight_decay)
        self.parameters = dict(step.trainable_parameters())
        self.optimizer = build_optimizer(groups, settings.adam_beta2, settings.adam_eps)
        self.schedule = Schedule(
            self.optimizer, self.total_steps, settings.warmup_proportion, settings.schedule,
            settings.cosine_epochs / settings.epochs,
        )  # fmt: skip
        if settings.adam_eps_uncorrected:
            leave_eps_uncorrected(self.optimizer, self.schedule, settings.adam_eps)
        self.scaler = torch.amp.GradScaler(process.device.type, enabled=settings.precision == "fp16")
        self.distributed: DistributedDataParallel | None = None
        if process.world_size > 1:
            devices = [process.device] if process.device.type == "cuda" else None
            self.distributed = DistributedDataParallel(step, device_ids=devices)
        self.clock = StepClock(process.device)
        parts = settings.gradient_accumulation_steps
        log.info(
            "training %s %d, steps %d in %d epochs, global batch %d = %d x %d a process%s%s",
            step.items, len(items), self.total_steps, settings.epochs, settings.batch_size, process.world_size,
            settings.batch_size // process.world_size, f" in {parts} parts" if parts > 1 else "",
            step.batch_note(settings.batch_size),
        )  # fmt: skip
        for group in groups:
            log.info(
                "  group %-14s %3d tensors, %11d values, lr %.2e, weight decay %g",
                group["name"], len(group["params"]), sum(p.numel() for p in group["params"]), group["initial_lr"],
                group["weight_decay"],
            )  # fmt: skip
        torch.manual_seed(seed + process.rank)  # dropout must differ between processes, unlike initialisation

    def state(self, notes: dict[str, Any], random: list[torch.Tensor]) -> dict[str, Any]:
        """Return everything that the next step depends on; `random` holds the random states of all processes."""
        return {
            "tensors": {name: parameter.detach().cpu() for name, parameter in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped": self.results.skipped,
            "random": random,
            "notes": notes,
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any], notes: dict[str, Any]) -> None:
        """Restore what `state` returned; its notes go into `notes`."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state["tensors"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.results.skipped = state["step"], state["skipped"]
        notes.update(state["notes"])
        random = state["random"]
        if len(random) == self.process.world_size:
            set_random_state(random[self.process.rank], self.process.device)
        else:
            log.warning("the run had %d processes before, so dropout draws other random numbers now", len(random))
            torch.manual_seed(hash((self.step, self.process.rank)) % 2**63)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield this process's batches of an epoch from the current step on; a reading error stops all processes."""
        self.sampler.set_epoch(epoch, self.step - epoch * len(self.sampler))
        batches = iter(self.loader)
        for _ in range(len(self.sampler) - self.sampler.start_batch):
            batch, error = None, None
            try:
                batch = next(batches)
            except Exception as caught:
                error = explained(caught) or caught
            self.process.fail_together(error)
            assert batch is not None
            self.task_step.received(batch)
            yield batch

    def backward(self, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return the loss of the global batch, `[]`, and leave its gradient, not yet clipped, in the parameters."""
        model = self.distributed or self.task_step
        count = self.settings.gradient_accumulation_steps
        if count == 1:
            loss = model(*inputs)
            self.clock.mark("forward")
            self.scaler.scale(loss).backward()
            return loss.detach()
        known_loss, parts = self.task_step.in_parts(inputs, count)
        self.clock.mark("forward")
        losses = []
        for number, part in enumerate(parts):
            waits = self.distributed is not None and number < count - 1
            with self.distributed.no_sync() if waits and self.distributed else nullcontext():
                if part.random_state is not None:
                    set_random_state(part.random_state, self.process.device)
                loss = model(*part.inputs) if known_loss is not None else model(*part.inputs) / count
                self.scaler.scale(loss).backward()
                losses.append(loss.detach())
        return torch.stack(losses).sum() if known_loss is None else known_loss

    def take_step(self, batch: Batch) -> None:
        """Take one step of the optimiser; raises like `StepResults.check`, on a GPU for the previous step."""
        self.enqueue_step(batch)
        self.results.check(self.lag)

    def enqueue_step(self, batch: Batch) -> None:
        """Enqueue one step of the optimiser on the device, without waiting for the device."""
        self.clock.mark("data")
        inputs = tuple(batch[name].to(self.process.device, non_blocking=True) for name in self.task_step.inputs)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.backward(inputs)
        if not self.all_reached:  # in the first step, before it changes anything
            self.process.fail_together(unreached(self.parameters))
            self.all_reached = True
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.max_grad_norm, foreach=True)
        self.clock.mark("backward")
        one = torch.ones_like(loss)
        scale = self.scaler.scale(one)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        skipped = self.scaler.scale(one) < scale  # the scaler lowers the scale when it skips a step
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        self.schedule.step()
        self.task_step.method.after_step()
        self.results.add(self.step, batch["index"], lr, loss, norm, skipped)
        self.step += 1
        self.clock.mark("optimiser")

    def report(self, steps: int, progress: tqdm) -> None:
        """Log a line about the last `steps` steps; raises like `StepResults.check`."""
        self.results.check()
        if not self.looked_for_idle and self.step - self.results.skipped >= LOOK_AFTER:
            self.looked_for_idle = True
            if self.process.is_main and (names := idle(self.optimizer, self.parameters)):
                log.warning(
                    "%d of %d trained tensors have had no gradient in any step and keep their initial values: %s "
                    "(--describe gives the reason if it is known)", len(names), len(self.parameters),
                    some(names, SHOWN),
                )  # fmt: skip
        elapsed = time.perf_counter() - self.clock.began
        values = self.results.values | {
            "epoch": round(self.step / len(self.sampler), 4),
            **self.task_step.scalars(),
            "clips_per_second": steps * self.settings.batch_size / elapsed,
            **{f"{phase}_share": round(share, 4) for phase, share in self.clock.shares().items()},
        }
        if self.process.device.type == "cuda":
            values["gpu_memory_gib"] = round(torch.cuda.max_memory_allocated(self.process.device) / 2**30, 3)
        if self.scaler.is_enabled():
            values |= {"loss_scale": self.scaler.get_scale(), "skipped_steps": self.results.skipped}
        self.logger.metrics(self.step, "train", values)
        progress.set_postfix_str(
            f"loss {values['loss']:.3f}, lr {values['lr']:.1e}, {values['clips_per_second']:.0f} clips/s, "
            f"{values['data_share']:.0%} waiting for data"
        )
        self.clock.restart()


def train(
    run: Training,
    *,
    n_display: int,
    after_epoch: Callable[[int], Any],
    points: ResumePoints,
    resume: str = "",
    save_every: int = 0,
    notes: dict[str, Any] | None = None,
) -> None:
    """Train in place, from scratch or from a resume point.

    With fp16 the loss is scaled. A step whose gradient overflows is skipped, but the schedule goes on. The log and
    `metrics.jsonl` count such steps as `skipped_steps`.

    Args:
        n_display: steps between two lines in the log and in `metrics.jsonl`.
        after_epoch: called with the epoch's number (from 1), on every process.
        points: the resume points to write, after every epoch, every `save_every` steps, and on a stop signal.
        resume: "auto", a resume point's path, or empty for a new training, see `ResumePoints.find`.
        notes: the caller's state, saved and restored with the rest.

    Raises:
        ValueError: the loss or the gradient is not finite, a video cannot be read (raised on all processes), or the
            resume point belongs to another run.
        Interrupted: after a signal, once the resume point is written.
    """
    notes = {} if notes is None else notes
    settings, process, logger, epoch_steps = run.settings, run.process, run.logger, len(run.sampler)
    state = points.find(resume) if resume else None
    logger.begin()  # from here on nothing is refused
    process.barrier()  # all processes must have read before one writes
    goes_on_here = state is not None and points.holds(resume)
    if process.is_main and not goes_on_here:
        points.set_aside()
    if state is not None:
        run.restore(state, notes)
        if process.is_main and goes_on_here:  # in another folder these lines and files would be another run's
            logger.rewind(run.step, run.step / epoch_steps)
            points.rewind(run.step // epoch_steps)
        log.info("resumed after step %d of %d", run.step, run.total_steps)

    def save() -> None:
        run.results.check()
        random = process.share(random_state(process.device))
        process.on_main(lambda: points.save(run.step, run.state(notes, random)))

    def progress_bar() -> tqdm:
        shown = {"initial": run.step, "unit": "step", "disable": not process.is_main, "dynamic_ncols": True}
        return tqdm(total=run.total_steps, **shown)

    with stop_requested() as stopping, progress_bar() as progress:
        for epoch in range(run.step // epoch_steps, settings.epochs):
            run.task_step.train()
            run.clock.restart()
            displayed = run.step
            for batch in run.batches(epoch):
                run.take_step(batch)
                if run.step % n_display == 0 or run.step == run.total_steps:
                    run.report(run.step - displayed, progress)
                    displayed = run.step
                progress.update()
                at_epoch_end = run.step % epoch_steps == 0
                if process.any(stopping()) and not at_epoch_end:
                    save()
                    raise Interrupted(f"stopped by a signal after step {run.step}; --resume auto goes on from there")
                if save_every and run.step % save_every == 0 and not at_epoch_end:
                    save()
            run.results.check()
            if run.scaler.is_enabled():
                log.info(
                    "epoch %d, %d of %d steps skipped: their gradients overflowed fp16",
                    epoch + 1, run.results.skipped, run.step,
                )  # fmt: skip
            after_epoch(epoch + 1)
            save()
            if process.any(stopping()):
                raise Interrupted(f"stopped by a signal after epoch {epoch + 1}; --resume auto goes on from there")
