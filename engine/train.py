"""The one training loop, for every method and data set.

Shapes: B pairs of the global batch, b = B/W pairs of this process, E joint embedding.
"""

import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from dataloaders.datasets import Batch, TrainingPairs, make_training_loader
from dataloaders.sampler import EpochSampler
from engine.checkpoint import ResumePoints
from engine.config import OptimConfig
from engine.data import normalise_for
from engine.distributed import Process, gather, gather_with_gradient
from engine.errors import explained
from engine.gradients import LOOK_AFTER, SHOWN, idle, unreached
from engine.logger import RunLogger, log
from engine.optim import build_optimizer, build_schedule
from modules.clip import Block
from modules.kernels import usable
from modules.losses import symmetric_info_nce
from modules.methods import Method
from modules.quoting import some

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # what clusters send before they take a machine away
PHASES = ("data", "forward", "backward", "optimiser")

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # uint8 [b,T,3,H,W], bool [b,T], int64 [b,L]


class Interrupted(Exception):
    """A signal asked the run to stop; its resume point is written."""


def auto_precision(device: torch.device) -> Literal["bf16", "fp32"]:
    """What `auto` stands for: bf16 on a GPU that has it, else fp32."""
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def autocast_for(precision: str, device: torch.device) -> Callable[[], torch.autocast]:
    """The context the encoders run in: bf16 or fp16 if asked for, or if it is what `auto` stands for; else plain
    fp32."""
    if precision == "auto":
        precision = auto_precision(device)
    return lambda: torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST)


@dataclass(frozen=True)
class CachedGradient:
    """What a part of a batch needs to go backward alone: the loss's gradient at its embeddings, `[n,E]` each."""

    text: torch.Tensor
    clips: torch.Tensor
    # What `ContrastiveStep.loss` takes, with one part of a step: for the similarity's own weights.
    everything: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None


class ContrastiveStep(nn.Module):
    """From a process's pairs to the loss of the global batch; what DistributedDataParallel wraps.

    The gather stands here and not in the method, which stays local; the loss and the similarity are in fp32.
    """

    def __init__(self, method: Method, autocast: Callable[[], torch.autocast], gather_gradient: str = "sum") -> None:
        super().__init__()
        self.method = method
        self.autocast = autocast
        self.gather_gradient = gather_gradient

    def embed(
        self, video: torch.Tensor, frame_mask: torch.Tensor, token_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 `[n,T,3,H,W]`, bool `[n,T]`, int64 `[n,L]` -> fp32 text and clips, `[n,E]` each."""
        with self.autocast():
            text, clips = self.method(normalise_for(self.method.clip, video), frame_mask, token_ids)
        return text.float(), clips.float()

    def loss(self, text: torch.Tensor, clips: torch.Tensor, video_index: torch.Tensor | None = None) -> torch.Tensor:
        """Of the global batch: `[B,E]` each, and int64 `[B]`, see `symmetric_info_nce`."""
        return symmetric_info_nce(self.method.similarity(text, clips), video_index)

    def forward(
        self,
        video: torch.Tensor,
        frame_mask: torch.Tensor,
        token_ids: torch.Tensor,
        cached: CachedGradient | None = None,
        video_index: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The scalar loss over all B pairs, of inputs as in `embed`; with `cached`, a scalar with the same gradient.

        With `video_index`, int64 `[b]`, a number for each pair's video, all pairs of a video are each other's
        positives, also those of other processes.
        """
        text, clips = self.embed(video, frame_mask, token_ids)
        if cached is None:
            text, clips = (gather_with_gradient(rows, self.gather_gradient) for rows in (text, clips))
            return self.loss(text, clips, None if video_index is None else gather(video_index))
        surrogate = (text * cached.text).sum() + (clips * cached.clips).sum()
        return surrogate if cached.everything is None else surrogate + self.loss(*cached.everything)

    def cache_gradients(
        self, parts: list[Inputs], video_index: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, list[CachedGradient], list[torch.Tensor]]:
        """Embed the parts of a batch without keeping what is inside, and take the loss's gradient at the embeddings.

        GradCache (Gao et al., 2021, arXiv 2101.06983): exact, since the loss sees the parts through these alone.
        `video_index`, `[b]`, is that of all parts, as in `forward`.

        Returns:
            The loss, the gradients of each part, and the random state before each part, under which its second pass
            draws the same dropout.
        """
        embeddings, states = [], []
        with torch.no_grad():
            for part in parts:
                states.append(random_state(part[0].device))
                embeddings.append(self.embed(*part))
            local = [torch.cat(rows) for rows in zip(*embeddings, strict=True)]
            gathered = [gather_with_gradient(rows) for rows in local]
        leaves = [rows.requires_grad_() for rows in gathered]
        videos = None if video_index is None else gather(video_index)
        loss = self.loss(leaves[0], leaves[1], videos)
        world_size, rank = 1, 0
        if torch.distributed.is_initialized():
            world_size, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        own = slice(rank * len(local[0]), (rank + 1) * len(local[0]))
        # DistributedDataParallel takes the mean over processes of what must be a sum.
        scale = world_size if self.gather_gradient == "sum" else 1
        text, clips = (scale * gradient[own] for gradient in torch.autograd.grad(loss, leaves))
        sizes = [len(part[0]) for part in parts]
        cached = [CachedGradient(t, c, None) for t, c in zip(text.split(sizes), clips.split(sizes), strict=True)]
        everything = (leaves[0].detach(), leaves[1].detach(), videos)
        cached[-1] = CachedGradient(cached[-1].text, cached[-1].clips, everything)
        return loss.detach(), cached, states


def random_state(device: torch.device) -> torch.Tensor:
    """The state of the generator that dropout on `device` draws from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_random_state(state: torch.Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def compiler_error(device: torch.device) -> ValueError | None:
    """Why torch.compile cannot make code for `device` here; None where it can."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(8, device=device))
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        return ValueError(
            "--compile needs a working C++ compiler (g++), and on a GPU triton and a C compiler with Python's headers; "
            f"torch.compile says: {reason}"
        )
    return None


def compile_forward(method: Method) -> None:
    """Make one graph of the method's `forward` in its first call, for batches of that size; another size is compiled
    anew."""
    # It would cut the graph where DistributedDataParallel sends gradients, which older versions of torch refuse for
    # ours: an autograd.Function and recomputed blocks are graphs within it.
    torch._dynamo.config.optimize_ddp = False
    # It takes clips' tokens [B,T,P,D] for images of T channels, and copies what is kept for backward to the layout that
    # suits those.
    torch._inductor.config.layout_optimization = False
    usable(method.clip.logit_scale)  # which learns here what it cannot ask in tracing
    method.compile(dynamic=False)


class StepClock:
    """Where the time of the steps goes, in seconds a phase, without making a GPU wait."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        self.marks: list[tuple[str, Any]] = [("start", self._now())]
        self.began = time.perf_counter()

    def mark(self, phase: str) -> None:
        """The phase that has just ended."""
        self.marks.append((phase, self._now()))

    def _now(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def shares(self) -> dict[str, float]:
        """Each phase's share of the time since the start, 0 to 1."""
        spent = dict.fromkeys(PHASES, 0.0)
        if self.on_gpu:
            torch.cuda.synchronize()
        for (_, before), (phase, now) in zip(self.marks, self.marks[1:], strict=False):
            spent[phase] += before.elapsed_time(now) if self.on_gpu else now - before
        total = sum(spent.values()) or 1.0
        return {phase: seconds / total for phase, seconds in spent.items()}


@dataclass(frozen=True)
class Outcome:
    """What a step came to, on its way from the device to the host."""

    step: int
    pairs: torch.Tensor  # int64 [b], on the CPU: this process's share of the batch
    lr: float  # the largest of the groups' in this step
    values: torch.Tensor  # fp32 [3], on the CPU once it has arrived: loss, norm of the gradient, 1 for a skipped step
    arrived: torch.cuda.Event | None  # None: it is there


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Whether one of STOP_SIGNALS has come, as long as the context lasts."""
    came = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in STOP_SIGNALS}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def deal_batches(pairs: TrainingPairs, settings: OptimConfig, process: Process, seed: int) -> EpochSampler:
    """This process's batches of every epoch.

    Raises ValueError if the batch does not divide by the processes and their parts or exceeds the pairs, or if pairs of
    one video cannot be kept apart.
    """
    parts = settings.gradient_accumulation_steps
    if settings.batch_size % (process.world_size * parts):
        shares = f"{process.world_size} processes" + (f" times {parts} parts" if parts > 1 else "")
        raise ValueError(f"--batch_size {settings.batch_size} is global and does not divide by the {shares}")
    return EpochSampler(
        len(pairs), settings.batch_size // process.world_size, process.rank, process.world_size, seed,
        partner=pairs.partner, video_index=pairs.video_index if settings.same_video == "apart" else None,
    )  # fmt: skip


class Training:
    """A method in training: its optimiser, where it stands, and how that is saved and restored.

    With `settings.compile` the method's `forward`, from normalised pixels and words to embeddings, is one graph, made
    in the first step; in parts it is two, without and with gradient. `encode_video` and `encode_text` stay eager, and
    with them evaluation: its last batches are smaller, and each size would be compiled anew. Nothing gets another name.
    Dropout draws other numbers than without.
    """

    def __init__(
        self,
        method: Method,
        pairs: TrainingPairs,
        settings: OptimConfig,
        process: Process,
        logger: RunLogger,
        *,
        seed: int,
        num_workers: int,
        prefetch_factor: int,
    ) -> None:
        """Raises ValueError as `deal_batches`, or if torch.compile is asked for and does not work here."""
        self.method, self.pairs, self.settings, self.process, self.logger = method, pairs, settings, process, logger
        self.sampler = deal_batches(pairs, settings, process, seed)
        pin_memory = process.device.type == "cuda"
        self.loader = make_training_loader(pairs, self.sampler, num_workers, pin_memory, prefetch_factor)
        self.total_steps = settings.epochs * len(self.sampler)
        self.step = 0
        self.skipped = 0
        self.outcomes: deque[Outcome] = deque()  # of the steps that nobody has looked at yet
        # Newest outcomes that wait: a GPU always has a step to work on while the host looks at the one before.
        self.lag = 1 if process.device.type == "cuda" else 0
        self.values: dict[str, float] = {}  # of the newest step that was looked at
        self.all_reached = self.looked_for_idle = False

        for block in method.modules():
            if isinstance(block, Block):
                block.recompute = settings.activation_checkpointing
        if settings.compile:
            process.fail_together(compiler_error(process.device))
            compile_forward(method)
        groups = method.parameter_groups(settings.lr, settings.coef_lr, settings.weight_decay)
        self.parameters = dict(method.trainable_parameters())
        self.optimizer = build_optimizer(groups)
        self.schedule = build_schedule(self.optimizer, self.total_steps, settings.warmup_proportion, settings.schedule)
        self.scaler = torch.amp.GradScaler(process.device.type, enabled=settings.precision == "fp16")
        self.contrastive = ContrastiveStep(
            method, autocast_for(settings.precision, process.device), settings.gather_gradient
        )
        self.distributed: DistributedDataParallel | None = None
        if process.world_size > 1:
            devices = [process.device] if process.device.type == "cuda" else None
            self.distributed = DistributedDataParallel(self.contrastive, device_ids=devices)
        self.clock = StepClock(process.device)
        log.info(
            "training pairs %d, steps %d in %d epochs, global batch %d = %d x %d a process%s, negatives a query %s%d",
            len(pairs), self.total_steps, settings.epochs, settings.batch_size, process.world_size,
            settings.batch_size // process.world_size,
            f" in {parts} parts, each embedded twice" if (parts := settings.gradient_accumulation_steps) > 1 else "",
            "up to " if settings.same_video == "positives" else "", settings.batch_size - 1,
        )  # fmt: skip
        for group in groups:
            log.info(
                "  group %-14s %3d tensors, %11d values, lr %.2e, weight decay %g",
                group["name"], len(group["params"]), sum(p.numel() for p in group["params"]), group["initial_lr"],
                group["weight_decay"],
            )  # fmt: skip
        torch.manual_seed(seed + process.rank)  # dropout differs between processes, initialisation did not

    def state(self, notes: dict[str, Any], random: list[torch.Tensor]) -> dict[str, Any]:
        """Everything that the next step depends on; `random` are the random states of all processes."""
        return {
            "tensors": {name: parameter.detach().cpu() for name, parameter in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped": self.skipped,
            "random": random,
            "notes": notes,
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any], notes: dict[str, Any]) -> None:
        """Go back to a `state`, whose notes go into `notes`."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state["tensors"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.skipped = state["step"], state["skipped"]
        notes.update(state["notes"])
        random = state["random"]
        if len(random) == self.process.world_size:
            set_random_state(random[self.process.rank], self.process.device)
        else:
            log.warning("the run had %d processes before: dropout is drawn anew", len(random))
            torch.manual_seed(hash((self.step, self.process.rank)) % 2**63)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """This process's batches of an epoch, from where it stands; what one process cannot read stops all."""
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
            yield batch

    def backward(self, inputs: Inputs, video_index: torch.Tensor | None = None) -> torch.Tensor:
        """The loss of the global batch, `[]`; its gradient, not yet clipped, is left in the parameters."""
        model = self.distributed or self.contrastive
        count = self.settings.gradient_accumulation_steps
        if count == 1:
            loss = model(*inputs, video_index=video_index)
            self.clock.mark("forward")
            self.scaler.scale(loss).backward()
            return loss.detach()
        parts: list[Inputs] = list(zip(*(tensor.chunk(count) for tensor in inputs), strict=True))
        loss, cached, states = self.contrastive.cache_gradients(parts, video_index)
        self.clock.mark("forward")
        for number, (part, gradient, state) in enumerate(zip(parts, cached, states, strict=True)):
            waits = self.distributed is not None and number < count - 1
            with self.distributed.no_sync() if waits and self.distributed else nullcontext():
                set_random_state(state, self.process.device)
                self.scaler.scale(model(*part, gradient)).backward()
        return loss

    def take_step(self, batch: Batch) -> None:
        """One step of the optimiser; raises as `settle`, on a GPU about the step before."""
        self.outcomes.append(self.advance(batch))
        self.settle(self.lag)

    def advance(self, batch: Batch) -> Outcome:
        """Have the device take one step of the optimiser, without ever waiting for it."""
        self.clock.mark("data")
        video, frame_mask, token_ids, video_index = (
            batch[name].to(self.process.device, non_blocking=True)
            for name in ("video", "frame_mask", "token_ids", "video_index")
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.backward(
            (video, frame_mask, token_ids), video_index if self.settings.same_video == "positives" else None
        )
        if not self.all_reached:  # in the first step, before it changes anything
            self.process.fail_together(unreached(self.parameters, frame_mask.shape[1]))
            self.all_reached = True
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.max_grad_norm, foreach=True)
        self.clock.mark("backward")
        one = torch.ones_like(loss)
        scale = self.scaler.scale(one)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        skipped = self.scaler.scale(one) < scale  # the scaler lowers the scale when it leaves a step out
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        self.schedule.step()
        self.method.after_step()
        values = torch.stack([loss, norm, skipped.to(loss.dtype)]).to("cpu", non_blocking=True)
        arrived = torch.cuda.Event() if loss.is_cuda else None
        if arrived is not None:
            arrived.record()
        outcome = Outcome(self.step, batch["index"], lr, values, arrived)
        self.step += 1
        self.clock.mark("optimiser")
        return outcome

    def settle(self, lag: int = 0) -> None:
        """Look at what the steps came to, but for the newest `lag`; with none left out, before the weights are used.

        Raises:
            ValueError: for a loss, or without fp16 a gradient, that is not finite; with the step and the video ids.
        """
        while len(self.outcomes) > lag:
            outcome = self.outcomes.popleft()
            if outcome.arrived is not None:
                outcome.arrived.synchronize()
            loss, norm, skipped = outcome.values.tolist()
            if not math.isfinite(loss):
                raise self._not_finite("loss", loss, outcome)
            if not math.isfinite(norm) and not self.scaler.is_enabled():
                raise self._not_finite("norm of the gradient", norm, outcome)
            self.values = {"loss": loss, "gradient_norm": norm, "lr": outcome.lr}
            self.skipped += int(skipped)

    def _not_finite(self, what: str, value: float, outcome: Outcome) -> ValueError:
        videos = ", ".join(self.pairs.video_id(pair) for pair in outcome.pairs[:8].tolist())
        return ValueError(
            f"the {what} is {value} in step {outcome.step} on process {self.process.rank}, with the videos {videos} "
            f"...; lower --lr{', pass --precision fp32' if self.scaler.is_enabled() else ''} or look at these files"
        )

    def report(self, steps: int, progress: tqdm) -> None:
        """A line about the last `steps` steps; raises as `settle`."""
        self.settle()
        if not self.looked_for_idle and self.step - self.skipped >= LOOK_AFTER:
            self.looked_for_idle = True
            if self.process.is_main and (names := idle(self.optimizer, self.parameters)):
                log.warning(
                    "%d of %d trained tensors have had no gradient in any step and stay as they were drawn: %s "
                    "(--describe gives the reason where it is known)", len(names), len(self.parameters),
                    some(names, SHOWN),
                )  # fmt: skip
        elapsed = time.perf_counter() - self.clock.began
        values = self.values | {
            "epoch": round(self.step / len(self.sampler), 4),
            "logit_scale": self.method.clip.logit_scale.detach().exp().item(),
            "clips_per_second": steps * self.settings.batch_size / elapsed,
            **{f"{phase}_share": round(share, 4) for phase, share in self.clock.shares().items()},
        }
        if self.process.device.type == "cuda":
            values["gpu_memory_gib"] = round(torch.cuda.max_memory_allocated(self.process.device) / 2**30, 3)
        if self.scaler.is_enabled():
            values |= {"loss_scale": self.scaler.get_scale(), "skipped_steps": self.skipped}
        self.logger.metrics(self.step, "train", values)
        progress.set_postfix_str(
            f"loss {values['loss']:.3f}, lr {values['lr']:.1e}, {values['clips_per_second']:.0f} clips/s, "
            f"{values['data_share']:.0%} waiting for data"
        )
        self.clock.restart()


def train(
    method: Method,
    pairs: TrainingPairs,
    settings: OptimConfig,
    process: Process,
    logger: RunLogger,
    *,
    seed: int,
    num_workers: int,
    prefetch_factor: int,
    n_display: int,
    after_epoch: Callable[[int], Any],
    points: ResumePoints,
    resume: str = "",
    save_every: int = 0,
    notes: dict[str, Any] | None = None,
) -> None:
    """Train `method` in place, from the start or from where a run stopped.

    With fp16 the loss is scaled; a step whose gradient overflows is left out, while the schedule goes on, and counted
    as `skipped_steps` in the log and in `metrics.jsonl`.

    Args:
        pairs: the training pairs; every process holds all of them and takes its share of every global batch.
        seed: of order, frame draws and dropout.
        num_workers: decoding processes.
        prefetch_factor: batches that each of them prepares ahead.
        n_display: steps between two lines in the log and in `metrics.jsonl`.
        after_epoch: called with the epoch's number (from 1), on every process.
        points: where resume points are written: after every epoch, every `save_every` steps, and on STOP_SIGNALS.
        resume: "auto", a resume point's path, or nothing, see `ResumePoints.find`.
        notes: of the caller, saved and restored with the rest.

    Raises:
        ValueError: if the batch does not divide by the processes, exceeds the pairs, or the loss or the gradient is
            not finite; if pairs of one video cannot be kept apart; if a video cannot be read, on all processes; if the
            point to resume from is another run's; if torch.compile is asked for and does not work here.
        Interrupted: after a signal, once the resume point is written.
    """
    notes = {} if notes is None else notes
    run = Training(
        method, pairs, settings, process, logger, seed=seed, num_workers=num_workers, prefetch_factor=prefetch_factor
    )
    state = points.find(resume) if resume else None
    logger.begin()  # nothing is refused any more
    process.barrier()  # all have looked before one writes
    goes_on_here = state is not None and points.holds(resume)
    if process.is_main and not goes_on_here:
        points.set_aside()
    if state is not None:
        run.restore(state, notes)
        if goes_on_here:  # in another folder these lines would be another run's
            logger.rewind(run.step, run.step / len(run.sampler))
        log.info("resumed after step %d of %d", run.step, run.total_steps)

    def save() -> None:
        run.settle()
        random = process.share(random_state(process.device))
        error = None
        if process.is_main:
            try:
                points.save(run.step, run.state(notes, random))
            except OSError as caught:
                error = caught
        process.fail_together(error)

    with (
        stop_requested() as stopping,
        tqdm(
            total=run.total_steps, initial=run.step, unit="step", disable=not process.is_main, dynamic_ncols=True
        ) as progress,
    ):
        for epoch in range(run.step // len(run.sampler), settings.epochs):
            method.train()
            run.clock.restart()
            displayed = run.step
            for batch in run.batches(epoch):
                run.take_step(batch)
                if run.step % n_display == 0 or run.step == run.total_steps:
                    run.report(run.step - displayed, progress)
                    displayed = run.step
                progress.update()
                at_epoch_end = run.step % len(run.sampler) == 0
                if process.any(stopping()) and not at_epoch_end:
                    save()
                    raise Interrupted(f"stopped by a signal after step {run.step}; --resume auto goes on from there")
                if save_every and run.step % save_every == 0 and not at_epoch_end:
                    save()
            run.settle()
            if run.scaler.is_enabled():
                log.info(
                    "epoch %d, %d of %d steps skipped: their gradients overflowed fp16",
                    epoch + 1, run.skipped, run.step,
                )  # fmt: skip
            after_epoch(epoch + 1)
            save()
            if process.any(stopping()):
                raise Interrupted(f"stopped by a signal after epoch {epoch + 1}; --resume auto goes on from there")
