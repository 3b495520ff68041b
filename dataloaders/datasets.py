"""The torch datasets of videos with captions or labels, and the loaders that make batches of them.

Every random draw of a training item depends on (seed, epoch, index) alone, so the number of workers or processes does
not change what we train on.

Shapes: B batch, T = `max_frames`, S image side, L words, N rows, V views.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from dataloaders.augmentation import Augmentation, drawing
from dataloaders.classes import Classes
from dataloaders.frame_captions import FrameCaptions
from dataloaders.frames import FrameReader
from dataloaders.sampler import EpochSampler
from dataloaders.samples import PackedSample, Sample
from dataloaders.views import Views

Tokenize = Callable[[str | Sequence[str]], torch.Tensor]  # one or N captions -> int64 [N, L]
Item = dict[str, Any]  # tensors by name, and the `index` as an int
Batch = dict[str, torch.Tensor]


class TrainingPairs(Dataset[Item]):
    """Video-caption pairs to train on, indexed by (epoch, index).

    With `expand_captions` there is one item for every caption; otherwise there is one for every video, with a caption
    drawn in each epoch. An item: `video` uint8 [T, 3, S, S], `frame_mask` bool [T], `token_ids` int64 [L], `index`
    and `video_index` int.

    `video_index`, int64 [N], gives each item's video as a row of `samples`.

    `twin_of` maps a video's id to its twin's id. `partner`, int64 [N], is then the index of the twin's item whose
    caption has the same number, and the item's own index if there is none.

    `augmentation` changes a clip's pixels, but never flips or mixes clips, whose captions would be false. With the
    frame transform "bilinear" its crops are also resized bilinearly and without antialiasing. The attribute `frames`
    is the reader that is used, as in `LabelledClips`. Raises ValueError as `Augmentation.pixel_transform`.

    With `frame_captions`, `token_ids` is int64 [1 + T, L]: the caption, then those of the frames.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        tokenize: Tokenize,
        frames: FrameReader,
        expand_captions: bool,
        seed: int,
        twin_of: Mapping[str, str] | None = None,
        augmentation: Augmentation | None = None,
        frame_captions: FrameCaptions | None = None,
    ) -> None:
        self.samples = samples
        self.frame_captions = frame_captions
        self.tokenize = tokenize
        self.frames, self._transform = frames, None
        if augmentation is not None:
            assert augmentation.flip == "none", "a flip would make captions false"
            assert not augmentation.mixes, "captions are not mixed"
            self.frames = replace(frames, whole=augmentation.crops)
            smooth = frames.frame_transform != "bilinear"
            # Built here, so that worker processes inherit torchvision instead of importing it.
            self._transform = augmentation.pixel_transform(
                frames.image_size, frames.interpolation if smooth else "bilinear", antialias=smooth
            )
        self.seed = seed
        # (sample, caption) of every item, [N, 2]; caption -1 means "draw one". An array, because worker processes would
        # gradually copy a list of tuples as they touch it.
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
        row, caption = self._pair(index)
        sample = self._sample(row)
        if caption < 0:
            caption = int(generator.integers(len(sample.captions)))
        if self._transform is None:
            video, frame_mask = self.frames(sample.path, generator, sample.start, sample.end)
        else:
            clip = self.frames.take(sample.path, generator, sample.start, sample.end)
            clip = drawing(self._transform, clip, int(generator.integers(2**63)))
            video, frame_mask = self.frames.pad(clip)
        if self.frame_captions is None:
            token_ids = self.tokenize(sample.captions[caption])[0]
        else:
            token_ids = self.tokenize([sample.captions[caption], *self.frame_captions(row, caption)])
        return {
            "video": video,
            "frame_mask": frame_mask,
            "token_ids": token_ids,
            "index": index,
            "video_index": row,
        }

    def _pair(self, index: int) -> tuple[int, int]:
        """Return the row of an item's video and the number of its caption, -1 for a drawn one."""
        row, caption = self._pairs[index].tolist()
        return row, caption

    def _sample(self, row: int) -> Sample | PackedSample:
        return self.samples[row]

    def video_id(self, index: int) -> str:
        """Return the id of an item's video, for messages."""
        return self.samples[self.video_index[index]].video_id


class LabelledClips(Dataset[Item]):
    """Clips with the class they show to train on, indexed by (epoch, index), one for every video.

    An item: `video` uint8 [T, 3, S, S], `frame_mask` bool [T], `label` int64, `index` int; if the augmentation mixes
    clips also `mixing` float32 [5] for `augmentation.mix_pairs`.

    `frames` must be a reader for training; the attribute of that name is the one that is used, which keeps whole frames
    if the augmentation crops. `partner`, int64 [N], is the index of each clip's twin, or of the clip itself; None if
    clips have no twins. Raises ValueError for flips that would mislabel clips, for mixing of padded clips, and
    for a `short_side_max` below CLIP's image side.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        frames: FrameReader,
        classes: Classes,
        seed: int,
        augmentation: Augmentation | None = None,
        partner: np.ndarray | None = None,
    ) -> None:
        assert frames.training, "a reader for evaluation draws no frames"
        self.samples, self.partner = samples, partner
        self.augmentation = augmentation or Augmentation()
        self.frames = replace(frames, whole=self.augmentation.crops)
        self.seed = seed
        if self.augmentation.mixes and frames.frame_sampling == "uniform":
            raise ValueError(
                "--mixup_alpha and --cutmix_alpha mix clips of one length, and --frame_sampling uniform pads short "
                "ones: pass --frame_sampling segment or dense."
            )
        self._labels = classes.ids(samples)
        self._flipped_labels = self.augmentation.label_after_flip(classes)[self._labels]
        # Built here, so that worker processes inherit torchvision instead of importing it.
        self._transform = self.augmentation.pixel_transform(frames.image_size, frames.interpolation)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, index = key
        generator = np.random.default_rng([self.seed, epoch, index])
        sample, label, flipped_label = self.samples[index], self._labels[index], self._flipped_labels[index]
        clip = self.frames.take(sample.path, generator, sample.start, sample.end)
        is_flipped = generator.random() < self.augmentation.flip_probability and flipped_label >= 0
        pixel_seed = int(generator.integers(2**63))
        if self._transform:
            clip = drawing(self._transform, clip, pixel_seed)
        if is_flipped:
            clip, label = clip.flip(-1), flipped_label
        video, frame_mask = self.frames.pad(clip)
        item = {"video": video, "frame_mask": frame_mask, "label": int(label), "index": index}
        if self.augmentation.mixes:
            item["mixing"] = self.augmentation.draw_mixing(self.frames.image_size, generator)
        return item

    def video_id(self, index: int) -> str:
        """Return the id of an item's video, for messages."""
        return self.samples[index].video_id


class ViewedVideos(Dataset[Item]):
    """Every video once, with all its views. An item: `video` uint8 [V, T, 3, S, S], `frame_mask` bool [V, T], `index`
    int. A video is decoded once for all views; the attribute `frames` is the reader that does it.
    """

    def __init__(self, samples: Sequence[Sample], frames: FrameReader, views: Views) -> None:
        self.samples = samples
        self.frames = replace(frames, views=views)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:
        sample = self.samples[index]
        video, frame_mask = self.frames.read_views(sample.path, sample.start, sample.end)
        return {"video": video, "frame_mask": frame_mask, "index": index}

    def video_id(self, index: int) -> str:
        """Return the id of a video, for messages."""
        return self.samples[index].video_id


class GalleryVideos(Dataset[Item]):
    """Every video once: the gallery that queries search. An item: `video` uint8 [T, 3, S, S], `frame_mask` bool [T],
    `index` int."""

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
        """Return the id of a video, for messages."""
        return self.samples[index].video_id


class QueryCaptions(Dataset[Item]):
    """Every caption of every video, video by video, as queries. An item: `token_ids` int64 [L], `index` int.

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


def collate(items: Sequence[Item]) -> Batch:
    """Stack items into one batch: those of `video` uint8 [B, T, 3, S, S], `frame_mask` bool [B, T], `token_ids` int64
    [B, L] or [B, 1 + T, L], `mixing` float32 [B, 5], and int64 [B] `label`, `index`, `video_index`, if the items have
    them."""
    return default_collate(list(items))


def make_training_loader(
    dataset: Any,
    sampler: EpochSampler,
    num_workers: int,
    pin_memory: bool = False,
    prefetch_factor: int = 2,
) -> DataLoader[Item]:
    """Return a loader of `dataset` in the order of `sampler`; call `sampler.set_epoch` before each pass.

    Each of `num_workers` processes (--num_thread_reader) reads `prefetch_factor` batches ahead and stays alive between
    epochs; with 0, this process reads. The DataLoader makes each worker run torch on one thread.
    """
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        prefetch_factor=prefetch_factor if num_workers else None,
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),  # for the workers' seeds; drawn from torch's own, they would shift dropout's draws
    )


def make_evaluation_loader(
    dataset: Dataset[Item],
    batch_size: int,
    indices: Sequence[int],
    num_workers: int,
    pin_memory: bool = False,
    prefetch_factor: int = 2,
) -> DataLoader[Item]:
    """Return a loader of the items `indices`, one rank's shard: each once, in that order, with nothing padded or
    dropped. Workers are as in `make_training_loader`, but they end with the pass."""
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
