"""Draws pictures of what a trained method does: the clips that it retrieves, and STOP's maps.

Shapes: T frames, G grid of patches, S image side, H x W pixels of a picture.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from dataloaders.frames import FrameReader
from dataloaders.quoting import shorten
from dataloaders.samples import Sample
from engine.data import normalise_for
from modules.methods import Method
from modules.methods.stop import STOP, PromptMaps
from modules.tokenizer import tokenizer_of

GAP = 26  # pixels between two frames, where the count is written
LABEL = 150  # pixels for the row names on the left
SIDE = 112  # pixels of a frame in the picture
INK, PAPER, ACCENT, RIGHT = (40, 40, 40), 255, (200, 60, 20), (30, 160, 60)  # RGB


@dataclass(frozen=True)
class Restored:
    """A trained method, and the test split that its checkpoint names."""

    method: Method
    samples: list[Sample]
    reader: FrameReader
    max_words: int

    def chosen(self, videos: Sequence[str], count: int) -> list[Sample]:
        """Return the samples with these ids, or the first `count` if none is given; ValueError for an unknown id."""
        by_id = {sample.video_id: sample for sample in self.samples}
        unknown = [video for video in videos if video not in by_id]
        if unknown:
            raise ValueError(f"--videos {shorten(unknown[0])} is not in the test split")
        return [by_id[video] for video in videos] or self.samples[:count]


def heat(values: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Blend a map `[G,G]`, scaled to its maximum, over its grey frame, uint8 `[SIDE,SIDE,3]`; dark red to yellow."""
    scaled = (255 * values / max(float(values.max()), 1e-12)).astype(np.uint8)
    colour = cv2.applyColorMap(cv2.resize(scaled, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST), cv2.COLORMAP_HOT)
    grey = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(colour[..., ::-1].copy(), 0.6, grey, 0.4, 0)


def boxes(region_mask: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Draw frames around the chosen patches `[G,G]` and dim the others, uint8 `[SIDE,SIDE,3]`."""
    grid = len(region_mask)
    edge = SIDE // grid
    picture = frame // 3 + 100
    for row, column in zip(*np.nonzero(region_mask > 0.5), strict=True):
        window = np.s_[row * edge : (row + 1) * edge, column * edge : (column + 1) * edge]
        picture[window] = frame[window]
        left, top = int(column) * edge, int(row) * edge
        cv2.rectangle(picture, (left, top), (left + edge - 1, top + edge - 1), ACCENT, 1)
    return picture


def draw_clip(sample: Sample, frames: np.ndarray, maps: PromptMaps) -> np.ndarray:
    """Draw one clip, frames uint8 `[T,SIDE,SIDE,3]`, and the maps of one layer -> uint8 `[H,W,3]`."""
    count = len(frames)
    rows: list[tuple[str, list[np.ndarray]]] = [("frames", list(frames))]
    if maps.spatial is not None:
        grid = int(maps.spatial.attention_map.shape[-1] ** 0.5)

        def by_frame(values: torch.Tensor) -> np.ndarray:
            return values[0].float().unflatten(-1, (grid, grid)).numpy()

        spatial = maps.spatial
        rows += [
            ("attention A", [heat(*pair) for pair in zip(by_frame(spatial.attention_map), frames, strict=True)]),
            ("dynamics M", [heat(*pair) for pair in zip(by_frame(spatial.dynamics_map), frames, strict=True)]),
            ("regions r", [boxes(*pair) for pair in zip(by_frame(spatial.region_mask), frames, strict=True)]),
        ]
    height = 30 + len(rows) * (SIDE + 6)
    picture = np.full((height, LABEL + count * (SIDE + GAP), 3), PAPER, np.uint8)
    write(picture, f"{sample.video_id}: {(*sample.captions, sample.label)[0]}", (6, 20), 0.5)
    for row, (name, tiles) in enumerate(rows):
        top = 30 + row * (SIDE + 6)
        write(picture, name, (6, top + SIDE // 2), 0.5)
        paste(picture, tiles, top, SIDE + GAP)
    if maps.temporal is not None:
        write(picture, "prompts in", (6, 30 + 22), 0.4)
        write(picture, "each gap: number", (6, 30 + 36), 0.4)
        for gap, inserted in enumerate(maps.temporal.prompts_per_gap[0].tolist()):
            write(picture, str(inserted), (LABEL + gap * (SIDE + GAP) + SIDE + 7, 30 + SIDE // 2), 0.6, ACCENT)
    return picture


def paste(picture: np.ndarray, row: Iterable[np.ndarray], top: int, step: int) -> None:
    """Copy tiles uint8 `[SIDE,SIDE,3]` into a row of the picture, `step` pixels apart, after the row's name."""
    for column, tile in enumerate(row):
        left = LABEL + column * step
        picture[top : top + SIDE, left : left + SIDE] = tile


def write(picture: np.ndarray, text: str, at: tuple[int, int], size: float, colour: tuple[int, int, int] = INK) -> None:
    """Write a line of text whose left end is `at` (x, y)."""
    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)


def tiles(video: torch.Tensor) -> np.ndarray:
    """Resize frames uint8 `[T,3,S,S]` for the picture -> uint8 `[T,SIDE,SIDE,3]`."""
    frames = video.permute(0, 2, 3, 1).numpy()
    return np.stack([cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for frame in frames])


def draw_maps(restored: Restored, videos: Sequence[str], layer: int) -> list[np.ndarray]:
    """Draw one picture per clip: the attention, the chosen regions and the inserted prompts in a layer of STOP.

    Raises ValueError for another method, an unknown video or a layer without prompts.
    """
    method = restored.method
    if not isinstance(method, STOP):
        raise ValueError(f"{type(method).__name__} has no maps to draw; give a checkpoint of --method stop")
    pictures = []
    for sample in restored.chosen(videos, 3):
        video, frame_mask = restored.reader(sample.path, start=sample.start, end=sample.end)
        video, frame_mask = video[frame_mask], frame_mask[frame_mask]  # leaves out padding, which has no effect
        maps = method.prompt_maps(normalise_for(method.clip, video[None]), frame_mask[None])
        if not -len(maps) <= layer < len(maps):
            raise ValueError(f"--layer {layer}: this checkpoint has prompts in {len(maps)} layers")
        pictures.append(draw_clip(sample, tiles(video), maps[layer]))
    return pictures


@torch.no_grad()
def draw_retrieval(restored: Restored, videos: Sequence[str], best: int = 3) -> list[np.ndarray]:
    """Draw one picture per caption, with the `best` clips of the whole test split for it.

    Raises ValueError for a data set without captions.
    """
    method, samples = restored.method, restored.samples
    if not samples[0].captions:
        raise ValueError("the videos of this checkpoint's data set have classes and no captions; draw maps instead")
    clips = [restored.reader(sample.path, start=sample.start, end=sample.end) for sample in samples]
    features = torch.cat(
        [method.encode_video(normalise_for(method.clip, video[None]), frame_mask[None]) for video, frame_mask in clips]
    )
    tokenizer = tokenizer_of(method.clip.backbone, restored.max_words)
    pictures = []
    for sample in restored.chosen(videos, 4):
        scores = method.similarity(method.encode_text(tokenizer(sample.captions[0])), features)[0]
        ranking = scores.argsort(descending=True).tolist()
        own = samples.index(sample)
        rank = ranking.index(own) + 1
        rows = [tiles(clips[row][0][clips[row][1]]) for row in ranking[:best]]
        width = LABEL + max(len(row) for row in rows) * (SIDE + 4)
        picture = np.full((30 + best * (SIDE + 8), max(width, 640), 3), PAPER, np.uint8)
        write(picture, f"{sample.captions[0]}  (its own clip has rank {rank})", (6, 20), 0.5)
        for place, (number, row) in enumerate(zip(ranking, rows, strict=False)):
            top = 30 + place * (SIDE + 8)
            write(picture, f"{place + 1}. {samples[number].video_id}", (6, top + SIDE // 2), 0.5)
            paste(picture, row, top, SIDE + 4)
            if number == own:
                right = LABEL + len(row) * (SIDE + 4)
                cv2.rectangle(picture, (LABEL - 3, top - 3), (right - 1, top + SIDE + 2), RIGHT, 3)
        pictures.append(picture)
    return pictures


def save(pictures: Sequence[np.ndarray], output: Path) -> None:
    """Write pictures uint8 `[H,W,3]`, one below the other; OSError if that fails."""
    width = max(picture.shape[1] for picture in pictures)
    padded = [np.pad(p, ((0, 10), (0, width - p.shape[1]), (0, 0)), constant_values=PAPER) for p in pictures]
    output.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(output), np.concatenate(padded)[..., ::-1]):
        raise OSError(f"--output {output} could not be written")
