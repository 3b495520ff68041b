"""From a list of samples to batches: the datasets, the sampler and the loaders that every data set shares.

A data set's own file only lists its `Sample`s; reading frames, choosing captions, order and batching are here. Every
random draw of a training item comes from (seed, epoch, index) and nothing else, so neither the number of workers nor
the number of processes changes what is trained on.

Shapes: B batch, T = `max_frames`, S image side, L words, N rows. Videos travel as uint8; `transforms.normalise` makes
floats of them on the device.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from dataloaders import sampling
from dataloaders.cache import FrameCache, StoredFrames
from dataloaders.decode import VideoError, read_frames
from dataloaders.quoting import quoted
from dataloaders.transforms import INTERPOLATIONS, RESIZE_MODES, centre_crop, resize_and_crop, squash

FRAME_SAMPLING = ("uniform", "segment", "released")
FRAME_TRANSFORM = ("resize", "crop")

Tokenize = Callable[[str], torch.Tensor]  # one caption -> int64 [1, L]
Item = dict[str, Any]  # tensors by name, and the `index` as an int
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Sample:
    """One video of a data set with all its captions; `start` and `end`, in seconds, where only a part of the file
    belongs to it (None: from the file's start, to its end). `listed_in` is the file that names the video, for messages.
    """

    video_id: str
    path: Path
    captions: tuple[str, ...]
    start: float | None = None
    end: float | None = None
    listed_in: Path | None = field(default=None, compare=False)


@dataclass(frozen=True)
class FrameReader:
    """Reads a video file into the T frames a model sees, in the shape in which players show it.

    `feature_framerate` (frames a second, 0 for all) thins the video out first. Of what is left, "uniform" takes at
    most T frames by `slice_framepos` as CLIP4Clip does and pads a short video with black frames that the mask leaves
    out; "segment" takes one frame from each of T equal segments, a random one in `training` and the middle one
    otherwise, and repeats frames of a short video; "released" does it as the authors' code of STOP. `frame_transform`
    makes squares of them: "resize" resizes them first as `resize_mode` and `interpolation` say, which are the CLIP's
    own, "crop" cuts out the middle as it is. With a `cache` a video is decoded once only. Raises ValueError for a
    setting outside its range.
    """

    max_frames: int
    image_size: int
    frame_sampling: str = "uniform"
    feature_framerate: float = 0.0
    slice_framepos: int = sampling.SPREAD
    training: bool = False
    frame_transform: str = "resize"
    cache: FrameCache | None = None
    resize_mode: str = "shortest"
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.max_frames < 1:
            raise ValueError(f"--max_frames is {self.max_frames}: pass 1 or more.")
        if self.image_size < 1:
            raise ValueError(f"The image size is {self.image_size}: pass the side of CLIP's input in pixels.")
        if self.frame_sampling not in FRAME_SAMPLING:
            raise ValueError(
                f"--frame_sampling is {quoted(self.frame_sampling)}: pass one of {', '.join(FRAME_SAMPLING)}."
            )
        if self.frame_transform not in FRAME_TRANSFORM:
            raise ValueError(
                f"--frame_transform is {quoted(self.frame_transform)}: pass {' or '.join(FRAME_TRANSFORM)}."
            )
        if self.resize_mode not in RESIZE_MODES or self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"Frames cannot be resized by {quoted(self.resize_mode)} and {quoted(self.interpolation)}: pass one of "
                f"{', '.join(RESIZE_MODES)} and one of {', '.join(INTERPOLATIONS)}."
            )
        if self.frame_transform == "crop" and self.resize_mode != "shortest":
            raise ValueError(
                "--frame_transform crop cuts out the middle square, and this CLIP was trained on whole pictures, "
                "squashed to a square: pass --frame_transform resize."
            )
        if not 0 <= self.feature_framerate < float("inf"):
            raise ValueError(f"--feature_framerate is {self.feature_framerate}: pass 0 (every frame) or more.")
        sampling.uniform(1, 1, self.slice_framepos)  # refuses an unknown slice_framepos now, not at the first video

    def __call__(
        self,
        path: Path,
        generator: np.random.Generator | None = None,
        start: float | None = None,
        end: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """-> video uint8 [T, 3, S, S] and frame_mask bool [T], True for real frames.

        With `start` or `end` the frames of that window of time are the whole video. `generator` is needed for
        "segment" and "released" in training and is not touched otherwise. Raises VideoError, also for a video that is
        too small to crop and for a window without a frame; OSError if the cache cannot be written.
        """
        if self.cache is None:
            frames = self._read(path, start, end, lambda n: self._positions(n, generator))
        else:
            stored = self._stored(self.cache, path, start, end)
            positions = np.arange(len(stored))
            if self._draws:  # as decoding does: again, if the video ends before a frame that was drawn
                positions = self._positions(stored.promised, generator)
                if positions[-1] >= len(stored):
                    positions = self._positions(len(stored), generator)
            frames = stored.take(positions)
        n_real = len(frames)
        if n_real == self.max_frames:
            return frames, torch.ones(n_real, dtype=torch.bool)
        video = torch.zeros(self.max_frames, *frames.shape[1:], dtype=torch.uint8)
        video[:n_real] = frames
        return video, torch.arange(self.max_frames) < n_real

    def prepare(self, path: Path, start: float | None = None, end: float | None = None) -> None:
        """Put a video into the cache, or without one decode all of it that may be asked for; VideoError if it cannot
        be read, as later in training."""
        if self.cache is not None:
            self._stored(self.cache, path, start, end)
        else:
            self._read(path, start, end, lambda n: np.array([n - 1]) if self._draws else self._positions(n, None))

    def cache_place(self, path: Path, start: float | None = None, end: float | None = None) -> Path:
        """The file of a video's entry in the cache, there or not; VideoError if there is no such video."""
        assert self.cache is not None
        return self.cache.place(path, self._cache_settings(start, end))

    @property
    def _draws(self) -> bool:
        """Whether other frames are taken each time."""
        return self.training and self.frame_sampling != "uniform"

    def _stored(self, cache: FrameCache, path: Path, start: float | None, end: float | None) -> StoredFrames:
        """All candidates where frames are drawn from them, else the frames that are always taken."""

        def read() -> tuple[torch.Tensor, int]:
            counts = []

            def all_that_may_be_taken(n: int) -> np.ndarray:
                counts.append(n)
                return np.arange(n) if self._draws else self._positions(n, None)

            return self._read(path, start, end, all_that_may_be_taken), counts[0]

        return cache.load(path, self._cache_settings(start, end), read)

    def _cache_settings(self, start: float | None, end: float | None) -> str:
        return f"{self._stored_frames}, from {start} to {end}"

    @cached_property
    def _stored_frames(self) -> str:
        """Which frames of a video go into the cache, and how."""
        taken = "every candidate"
        if not self._draws:
            taken = f"{self.frame_sampling} {self.max_frames}"
        if self.frame_sampling == "uniform":
            taken += f" slice_framepos {self.slice_framepos}"
        how = self.frame_transform
        if how == "resize" and (self.resize_mode, self.interpolation) != ("shortest", "bicubic"):
            how += f" {self.resize_mode} {self.interpolation}"  # OpenAI's way has no name here, as in older caches
        return f"{taken}, {self.feature_framerate:.10g} fps, {how} to {self.image_size}"

    def _read(
        self, path: Path, start: float | None, end: float | None, positions: Callable[[int], np.ndarray]
    ) -> torch.Tensor:
        """Decode the frames at `positions` of the n candidates -> uint8 [K, 3, S, S]."""

        def choose(n_frames: int, fps: float) -> np.ndarray:
            if self.feature_framerate > 0 and fps == 0:
                raise VideoError(f"{path} states no frame rate: re-encode it, or pass --feature_framerate 0.")
            candidates = sampling.at_frame_rate(n_frames, fps, self.feature_framerate)
            return candidates[positions(len(candidates))]

        convert = partial(self._square, path=path)
        read = read_frames(path, choose, convert, start=start, end=end, square_pixels=True)
        return torch.from_numpy(read.frames)

    def _positions(self, n: int, generator: np.random.Generator | None) -> np.ndarray:
        if self.frame_sampling == "uniform":
            return sampling.uniform(n, self.max_frames, self.slice_framepos)
        segment = self.frame_sampling == "segment"
        if not self.training:
            return (sampling.segment_centres if segment else sampling.released_evaluation)(n, self.max_frames)
        assert generator is not None, "random frames need a generator"
        return (sampling.segment_random if segment else sampling.released_training)(n, self.max_frames, generator)

    def _square(self, frame: np.ndarray, path: Path) -> np.ndarray:
        """uint8 [H, W, 3] -> uint8 [3, S, S]."""
        if self.frame_transform == "resize":
            resize = squash if self.resize_mode == "squash" else resize_and_crop
            return resize(frame[None], self.image_size, self.interpolation)[0].numpy()
        height, width = frame.shape[:2]
        if min(height, width) < self.image_size:
            raise VideoError(
                f"{path} is {width}x{height}, too small to crop {self.image_size}x{self.image_size} from it: re-encode "
                f"it with a short side of {self.image_size}, or pass --frame_transform resize."
            )
        return centre_crop(frame[None], self.image_size)[0].numpy()


class TrainingPairs(Dataset[Item]):
    """Video-caption pairs to train on, indexed by (epoch, index).

    With `expand_captions` there is one item for every caption, else one for every video with a caption drawn anew in
    each epoch. An item: `video` uint8 [T, 3, S, S], `frame_mask` bool [T], `token_ids` int64 [L], `index` and
    `video_index` int.

    `video_index`, int64 [N], gives each item's video as a row of `samples`.

    `twin_of` names each video's twin by id, where it has one that is among the samples. `partner`, int64 [N], then is
    each item's index in its twin: the one with the caption of the same number, and itself where there is none.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        tokenize: Tokenize,
        frames: FrameReader,
        expand_captions: bool,
        seed: int,
        twin_of: Mapping[str, str] | None = None,
    ) -> None:
        self.samples = samples
        self.tokenize = tokenize
        self.frames = frames
        self.seed = seed
        # (sample, caption) of every item, [N, 2]; caption -1 is "draw one". An array, because worker processes would
        # copy a list of tuples piece by piece as they touch it.
        captions_of = [range(len(sample.captions)) if expand_captions else (-1,) for sample in samples]
        pairs = [(row, caption) for row, captions in enumerate(captions_of) for caption in captions]
        self._pairs = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        self.video_index = self._pairs[:, 0]
        self.partner = np.arange(len(pairs))
        if twin_of:
            row_of = {sample.video_id: row for row, sample in enumerate(samples)}
            item_of = {pair: item for item, pair in enumerate(pairs)}
            for item, (row, caption) in enumerate(pairs):
                twin_row = row_of.get(twin_of.get(samples[row].video_id, ""), row)
                self.partner[item] = item_of.get((twin_row, caption), item)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, index = key
        generator = np.random.default_rng([self.seed, epoch, index])
        row, caption = self._pairs[index]
        sample = self.samples[row]
        if caption < 0:
            caption = generator.integers(len(sample.captions))
        video, frame_mask = self.frames(sample.path, generator, sample.start, sample.end)
        token_ids = self.tokenize(sample.captions[caption])[0]
        return {
            "video": video,
            "frame_mask": frame_mask,
            "token_ids": token_ids,
            "index": index,
            "video_index": int(row),
        }

    def video_id(self, index: int) -> str:
        """The id of the video behind an item, for messages."""
        return self.samples[self.video_index[index]].video_id


class GalleryVideos(Dataset[Item]):
    """Every video once, to be searched in. An item: `video` uint8 [T, 3, S, S], `frame_mask` bool [T], `index`
    int."""

    def __init__(self, samples: Sequence[Sample], frames: FrameReader) -> None:
        self.samples = samples
        self.frames = frames

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:
        sample = self.samples[index]
        video, frame_mask = self.frames(sample.path, start=sample.start, end=sample.end)
        return {"video": video, "frame_mask": frame_mask, "index": index}

    def video_id(self, index: int) -> str:
        """The id of a video, for messages."""
        return self.samples[index].video_id


class QueryCaptions(Dataset[Item]):
    """Every caption of every video, video by video, to search with. An item: `token_ids` int64 [L], `index` int.

    `video_index` int64 [N] gives each caption's video as a row of `samples`, which is also its row in GalleryVideos.
    """

    def __init__(self, samples: Sequence[Sample], tokenize: Tokenize) -> None:
        self.captions = [caption for sample in samples for caption in sample.captions]
        self.video_index = np.repeat(np.arange(len(samples)), [len(sample.captions) for sample in samples])
        self.tokenize = tokenize

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> Item:
        return {"token_ids": self.tokenize(self.captions[index])[0], "index": index}


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """One rank's share of the training batches of an epoch: lists of (epoch, index) for `TrainingPairs`.

    The n items are shuffled by (seed, epoch) alone and cut into global batches of batch_size_per_rank * world_size; a
    rank takes its contiguous slice of each. The global batches are therefore the same on any number of ranks. The
    items left over at the end are dropped; with `drop_last=False` they make one smaller batch, as long as every rank
    gets some of it.

    With `partner`, int64 [n], an item is followed by its partner (see `TrainingPairs`), so that both meet in a batch,
    unless the end of a batch comes between them; where all items have partners and the batch is even it never does.

    With `video_index`, int64 [n], the items are not merely shuffled but dealt to the batches so that no global batch
    has two items of one video; where no video has two items anyway, it changes nothing.

    Raises ValueError if there are too few items for a single batch; with `video_index`, if a video has more items than
    there are full batches, or if there are partners too.
    """

    def __init__(
        self,
        n: int,
        batch_size_per_rank: int,
        rank: int,
        world_size: int,
        seed: int,
        drop_last: bool = True,
        partner: np.ndarray | None = None,
        video_index: np.ndarray | None = None,
    ) -> None:
        assert 0 <= rank < world_size, (rank, world_size)
        if batch_size_per_rank < 1:
            raise ValueError(f"--batch_size gives {batch_size_per_rank} items a process: pass at least {world_size}.")
        self.n = n
        self.global_batch_size = batch_size_per_rank * world_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.partner = partner
        self.n_batches, left_over = divmod(n, self.global_batch_size)
        if not drop_last and left_over >= world_size:
            self.n_batches += 1
        if self.n_batches == 0:
            least = self.global_batch_size if drop_last else world_size
            most = n - n % world_size  # the largest batch that can be shared evenly
            mend = f"pass --batch_size {most} or less" if most else "use fewer processes or more data"
            raise ValueError(f"There are {n} training items, a batch needs at least {least}: {mend}.")
        self.video_index = None
        if video_index is not None:
            if partner is not None and (partner != np.arange(n)).any():
                raise ValueError("--same_video apart does not work with --train_twins_csv: leave one of them out.")
            items_of_a_video, n_full = int(np.bincount(video_index).max()), n // self.global_batch_size
            if items_of_a_video > max(n_full, 1):
                most = n // items_of_a_video
                most -= most % world_size
                mend = f"--batch_size {most} or less, or " if most > 1 else ""
                raise ValueError(
                    "--same_video apart needs as many full batches in an epoch as a video has captions, but a video "
                    f"has {items_of_a_video} and an epoch {n_full}: pass {mend}--same_video negatives or positives."
                )
            if items_of_a_video > 1:
                self.video_index = video_index
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch that the next iteration yields; to resume within it, skip its first `start_batch`
        batches."""
        assert 0 <= start_batch <= self.n_batches, (start_batch, self.n_batches)
        self.epoch = epoch
        self.start_batch = start_batch

    def __len__(self) -> int:
        """Batches in a whole epoch, whatever `start_batch` is."""
        return self.n_batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # As a spawn key the epoch gives a stream apart from those of the items, [seed, epoch, index].
        generator = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(self.epoch,)))
        order = generator.permutation(self.n)
        if self.video_index is not None:
            order = _deal_apart(order, self.video_index, self.global_batch_size, generator)
        elif self.partner is not None:
            place = np.argsort(order)
            order = np.lexsort((place, np.minimum(place, place[self.partner])))
        for batch in range(self.start_batch, self.n_batches):
            first = batch * self.global_batch_size
            global_batch = order[first : first + self.global_batch_size]
            share = np.array_split(global_batch, self.world_size)[self.rank]
            yield [(self.epoch, index) for index in share.tolist()]


def _deal_apart(
    order: np.ndarray, video_index: np.ndarray, batch_size: int, generator: np.random.Generator
) -> np.ndarray:
    """Put shuffled items, int64 [n], batch after batch, so that no batch has two of one video.

    Those left over stand at the end; they are of different videos too. The others are dealt video by video, in random
    order, each item to one of the batches that have the fewest; chance decides which. As no batch is ever more than one
    item ahead, a video could come to a batch again only if it had more items than there are batches, which the caller
    excludes.
    """
    n_batches, n_left_over = divmod(len(order), batch_size)
    _, first_of_video = np.unique(video_index[order], return_index=True)
    at_end = np.sort(first_of_video)[:n_left_over]
    left_over, order = order[at_end], np.delete(order, at_end)

    videos = generator.permutation(video_index.max() + 1)[video_index[order]]
    by_video = np.argsort(videos, kind="stable")
    rounds, videos = (array[by_video].reshape(batch_size, n_batches) for array in (order, videos))
    batches = np.empty((n_batches, batch_size), dtype=np.int64)
    takers, videos_before = np.arange(n_batches), np.full(n_batches, -1)
    for number, (items, videos_now) in enumerate(zip(rounds, videos, strict=True)):
        # Each batch takes one item a round. The first video may have begun in the round before: the batches that have
        # it are not asked for the rest of it.
        have_it = takers[videos_before == videos_now[0]]
        drawn = generator.permutation(n_batches)
        first = drawn[~np.isin(drawn, have_it)][: (videos_now == videos_now[0]).sum()]
        takers = np.concatenate([first, generator.permutation(np.setdiff1d(drawn, first))])
        batches[takers, number] = items
        videos_before = videos_now
    return np.concatenate([batches.reshape(-1), left_over])


def collate(items: Sequence[Item]) -> Batch:
    """Items -> one batch: `video` uint8 [B, T, 3, S, S], `frame_mask` bool [B, T], `token_ids` int64 [B, L], `index`
    and `video_index` int64 [B]; of these, the ones that the items have."""
    return default_collate(list(items))


def make_training_loader(
    dataset: TrainingPairs,
    sampler: EpochSampler,
    num_workers: int,
    pin_memory: bool = False,
    prefetch_factor: int = 2,
) -> DataLoader[Item]:
    """Batches of `dataset` in the order of `sampler`; call `sampler.set_epoch` before each pass.

    `num_workers` (--num_thread_reader) processes read `prefetch_factor` batches ahead each and live on between epochs;
    0 reads in this process. Each of them runs torch on one thread, which the DataLoader sees to.
    """
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        prefetch_factor=prefetch_factor if num_workers else None,
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),  # of workers' seeds; from torch's own, every pass would shift dropout's draws
    )


def make_evaluation_loader(
    dataset: Dataset[Item],
    batch_size: int,
    indices: Sequence[int],
    num_workers: int,
    pin_memory: bool = False,
    prefetch_factor: int = 2,
) -> DataLoader[Item]:
    """Batches of the items `indices`, each of them once and in that order: one rank's shard, nothing padded or
    dropped. Workers as in `make_training_loader`, but they end with the pass."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=indices,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        prefetch_factor=prefetch_factor if num_workers else None,
        generator=torch.Generator(),
    )
