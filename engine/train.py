"""The one training loop, for every method and data set.

Shapes: B pairs of the global batch, b = B/W pairs of this process.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from dataloaders.samples import EpochSampler, TrainingPairs, make_training_loader
from dataloaders.transforms import normalise
from engine.config import OptimConfig
from engine.distributed import Process, gather_with_gradient
from engine.logger import RunLogger, log
from engine.optim import build_optimizer, build_schedule
from modules.losses import symmetric_info_nce
from modules.methods import Method

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_for(precision: str, device: torch.device) -> Callable[[], torch.autocast]:
    """The context the encoders run in: bf16 or fp16 if asked for, bf16 if `auto` finds a GPU that has it; else plain
    fp32."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return lambda: torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST)


class ContrastiveStep(nn.Module):
    """From a process's pairs to the loss of the global batch; what DistributedDataParallel wraps.

    The gather stands here and not in the method, which stays local; the loss and the similarity are in fp32.
    """

    def __init__(self, method: Method, autocast: Callable[[], torch.autocast], gather_gradient: str = "sum") -> None:
        super().__init__()
        self.method = method
        self.autocast = autocast
        self.gather_gradient = gather_gradient

    def forward(self, video: torch.Tensor, frame_mask: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """uint8 `[b,T,3,H,W]`, bool `[b,T]`, int64 `[b,L]` -> the scalar loss over all B pairs."""
        with self.autocast():
            text, clips = self.method(normalise(video), frame_mask, token_ids)
        text, clips = (gather_with_gradient(rows.float(), self.gather_gradient) for rows in (text, clips))
        return symmetric_info_nce(self.method.similarity(text, clips))


def train(
    method: Method,
    pairs: TrainingPairs,
    settings: OptimConfig,
    process: Process,
    logger: RunLogger,
    *,
    seed: int,
    num_workers: int,
    n_display: int,
    after_epoch: Callable[[int], Any],
) -> None:
    """Train `method` in place.

    With fp16 the loss is scaled; a step whose gradient overflows is left out, while the schedule goes on, and counted
    as `skipped_steps` in the log and in `metrics.jsonl`.

    Args:
        pairs: the training pairs; every process holds all of them and takes its share of every global batch.
        seed: of order, frame draws and dropout.
        num_workers: decoding processes.
        n_display: steps between two lines in the log and in `metrics.jsonl`.
        after_epoch: called with the epoch's number (from 1), on every process.

    Raises:
        ValueError: if the batch does not divide by the processes, exceeds the pairs, or the loss is not finite.
    """
    if settings.batch_size % process.world_size:
        raise ValueError(
            f"--batch_size {settings.batch_size} is global and does not divide by the {process.world_size} processes"
        )
    per_rank = settings.batch_size // process.world_size
    sampler = EpochSampler(len(pairs), per_rank, process.rank, process.world_size, seed, partner=pairs.partner)
    loader = make_training_loader(pairs, sampler, num_workers, pin_memory=process.device.type == "cuda")
    total_steps = settings.epochs * len(sampler)

    groups = method.parameter_groups(settings.lr, settings.coef_lr, settings.weight_decay)
    parameters = [parameter for _, parameter in method.trainable_parameters()]
    optimizer = build_optimizer(groups, process.device)
    schedule = build_schedule(optimizer, total_steps, settings.warmup_proportion, settings.schedule)
    scaler = torch.amp.GradScaler(process.device.type, enabled=settings.precision == "fp16")
    autocast = autocast_for(settings.precision, process.device)
    step_module: nn.Module = ContrastiveStep(method, autocast, settings.gather_gradient)
    if process.world_size > 1:
        devices = [process.device] if process.device.type == "cuda" else None
        step_module = DistributedDataParallel(step_module, device_ids=devices)
    log.info(
        "training pairs %d, steps %d in %d epochs, global batch %d = %d x %d a process, negatives a query %d",
        len(pairs), total_steps, settings.epochs, settings.batch_size, process.world_size, per_rank,
        settings.batch_size - 1,
    )  # fmt: skip
    for group in groups:
        log.info(
            "  group %-14s %3d tensors, %11d values, lr %.2e, weight decay %g",
            group["name"], len(group["params"]), sum(p.numel() for p in group["params"]), group["initial_lr"],
            group["weight_decay"],
        )  # fmt: skip

    torch.manual_seed(seed + process.rank)  # dropout differs between processes, initialisation did not
    step = skipped = 0
    with tqdm(total=total_steps, unit="step", disable=not process.is_main, dynamic_ncols=True) as progress:
        for epoch in range(settings.epochs):
            method.train()
            sampler.set_epoch(epoch)
            since, clips_since = time.perf_counter(), 0
            for batch in loader:
                inputs = (batch[k].to(process.device, non_blocking=True) for k in ("video", "frame_mask", "token_ids"))
                loss = step_module(*inputs)
                loss_value = loss.item()
                if not math.isfinite(loss_value):
                    videos = ", ".join(pairs.video_id(int(index)) for index in batch["index"][:8])
                    raise ValueError(
                        f"the loss is {loss_value} in step {step} on process {process.rank}, with the videos "
                        f"{videos} ...; lower --lr{', pass --precision fp32' if scaler.is_enabled() else ''} or look "
                        "at these files"
                    )
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                gradient_norm = nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
                scale = scaler.get_scale()
                scaler.step(optimizer)
                scaler.update()
                skipped += scaler.get_scale() < scale  # the scaler lowers the scale when it leaves a step out
                schedule.step()
                method.after_step()
                step += 1
                clips_since += settings.batch_size
                if step % n_display == 0 or step == total_steps:
                    values = {
                        "epoch": round(step / len(sampler), 4),
                        "loss": loss_value,
                        "lr": max(group["lr"] for group in optimizer.param_groups),
                        "gradient_norm": gradient_norm.item(),
                        "logit_scale": method.clip.logit_scale.detach().exp().item(),
                        "clips_per_second": clips_since / (time.perf_counter() - since),
                    }
                    if scaler.is_enabled():
                        values |= {"loss_scale": scaler.get_scale(), "skipped_steps": skipped}
                    logger.metrics(step, "train", values)
                    progress.set_postfix_str(
                        f"loss {loss_value:.3f}, lr {values['lr']:.1e}, {values['clips_per_second']:.0f} clips/s"
                    )
                    since, clips_since = time.perf_counter(), 0
                progress.update()
            if scaler.is_enabled():
                log.info("epoch %d, %d of %d steps skipped: their gradients overflowed fp16", epoch + 1, skipped, step)
            after_epoch(epoch + 1)
