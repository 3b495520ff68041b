"""The training step of `engine.train` on one batch, repeatable and in phases, and the floor to compare it with.

Shapes: B clips, T frames, H x W pixels.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.common import Batch, random_batch, timed
from dataloaders.transforms import normalise
from engine.optim import build_optimizer
from engine.precision import autocast_for
from engine.tasks.contrastive import ContrastiveStep
from modules.clip import CLIP, CLIPArchitecture
from modules.methods import Method

MOST_CLIPS = 4096  # the search for the largest batch ends here
IN_A_ROW = 4  # steps, or floors, on a GPU


class TrainingStep:
    """Takes the step of `engine.train` on the same batch again and again, as a whole or in its phases."""

    def __init__(self, method: Method, batch: Batch, precision: str) -> None:
        self.method, self.batch = method, batch
        self.device = batch[0].device
        self.contrastive = ContrastiveStep(method, autocast_for(precision, self.device))
        self.parameters = [parameter for _, parameter in method.trainable_parameters()]
        # The rate is so small that nothing is learned, however often the step is taken.
        self.optimizer = build_optimizer(method.parameter_groups(1e-9, 1.0, 0.2))

    def update(self) -> None:
        """Clip the gradients and take the optimiser's step."""
        nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()
        self.method.after_step()

    def take(self) -> None:
        """Take a whole step without waiting for the device, as training does."""
        self.optimizer.zero_grad(set_to_none=True)
        self.contrastive(*self.batch).backward()
        self.update()

    def phases(self) -> tuple[float, float, float]:
        """Take a step; return the milliseconds of forward, backward and optimiser."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, forward = timed(lambda: self.contrastive(*self.batch), self.device)
        _, backward = timed(loss.backward, self.device)
        _, update = timed(self.update, self.device)
        return forward, backward, update


def make_floor(architecture: CLIPArchitecture, video: Tensor, precision: str) -> Callable[[], None]:
    """Return a call that runs the bare frozen visual tower on frames uint8 `[B,T,3,H,W]`, forward, and back to its
    tokens."""
    visual = CLIP(architecture).visual.requires_grad_(False).to(video.device)
    autocast = autocast_for(precision, video.device)
    images = video.flatten(0, 1)

    def floor() -> None:
        with autocast():
            tokens = visual.embed(normalise(images)).detach().requires_grad_()
            hidden = tokens
            for block in visual.blocks:
                hidden = visual.step(block, hidden)
            embeddings = visual.pool(hidden)
        embeddings.float().sum().backward()

    return floor


def time_in_a_row(run: Callable[[], None], device: torch.device) -> float:
    """Return the milliseconds per run of `IN_A_ROW` runs that wait for the device only at the end."""

    def row() -> None:
        for _ in range(IN_A_ROW):
            run()

    return timed(row, device)[1] / IN_A_ROW


def largest_batch(
    method: Method, architecture: CLIPArchitecture, batch_size: int, frames: int, max_words: int, precision: str
) -> int:
    """Return the most clips whose eager step fits the GPU's memory, to an eighth, starting at `batch_size`.

    At most MOST_CLIPS; 0 if not even one clip fits.
    """

    def fits(clips: int) -> bool:
        try:
            batch = random_batch(
                architecture, clips, frames, max_words, torch.device("cuda"), method.reads_frame_captions
            )
            TrainingStep(method, batch, precision).take()
        except torch.OutOfMemoryError:
            return False
        finally:
            method.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
        return True

    good, size = 0, batch_size
    while size <= MOST_CLIPS and fits(size):
        good, size = size, 2 * size
    if size > MOST_CLIPS:
        return good
    while size - good > max(1, good // 8):
        middle = (good + size) // 2
        good, size = (middle, size) if fits(middle) else (good, middle)
    return good
