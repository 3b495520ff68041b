"""Pictures of what STOP does with a clip:  python -m engine.visualize runs/mine/last.safetensors --output maps.png

Needs the checkpoint only: the settings inside it name the data, the CLIP and the method. For each clip, from top to
bottom: the frames; the attention map A; the dynamics map M; the chosen regions r. Between two frames stands the number
of temporal prompts inserted there. `--layer` chooses the block (default: the last that has prompts).

Shapes: T frames, G grid of patches, S image side.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from dataloaders import DATASETS
from dataloaders.samples import FrameReader, Sample
from dataloaders.transforms import normalise
from engine.checkpoint import load_checkpoint, read_header
from engine.config import Config
from modules.clip_weights import backbone_sha256, load_clip
from modules.methods import build_method
from modules.methods.stop import STOP, LayerMaps

GAP = 26  # pixels between two frames, where the count stands
LABEL = 150  # pixels for the row names on the left
SIDE = 112  # pixels of a frame in the picture
INK, PAPER, ACCENT = (40, 40, 40), 255, (200, 60, 20)  # RGB


def heat(values: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """A map `[G,G]` over its frame, uint8 `[S,S,3]`: dark red to yellow over grey, scaled to the frame's maximum."""
    scaled = (255 * values / max(float(values.max()), 1e-12)).astype(np.uint8)
    colour = cv2.applyColorMap(cv2.resize(scaled, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST), cv2.COLORMAP_HOT)
    grey = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(colour[..., ::-1].copy(), 0.6, grey, 0.4, 0)


def boxes(region_mask: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """The frame with the chosen patches `[G,G]` framed and the others dimmed, uint8 `[S,S,3]`."""
    grid = len(region_mask)
    edge = SIDE // grid
    picture = frame // 3 + 100
    for row, column in zip(*np.nonzero(region_mask > 0.5), strict=True):
        window = np.s_[row * edge : (row + 1) * edge, column * edge : (column + 1) * edge]
        picture[window] = frame[window]
        left, top = int(column) * edge, int(row) * edge
        cv2.rectangle(picture, (left, top), (left + edge - 1, top + edge - 1), ACCENT, 1)
    return picture


def draw_clip(sample: Sample, frames: np.ndarray, maps: LayerMaps) -> np.ndarray:
    """The picture of one clip: frames uint8 `[T,SIDE,SIDE,3]` and what one layer found -> uint8 `[H,W,3]`."""
    count, grid = len(frames), 0
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
    write(picture, f"{sample.video_id}: {sample.captions[0]}", (6, 20), 0.5)
    for row, (name, tiles) in enumerate(rows):
        top = 30 + row * (SIDE + 6)
        write(picture, name, (6, top + SIDE // 2), 0.5)
        for column, tile in enumerate(tiles):
            left = LABEL + column * (SIDE + GAP)
            picture[top : top + SIDE, left : left + SIDE] = tile
    if maps.temporal is not None:
        write(picture, "prompts in", (6, 30 + 22), 0.4)
        write(picture, "each gap: number", (6, 30 + 36), 0.4)
        for gap, inserted in enumerate(maps.temporal.prompts_per_gap[0].tolist()):
            write(picture, str(inserted), (LABEL + gap * (SIDE + GAP) + SIDE + 7, 30 + SIDE // 2), 0.6, ACCENT)
    return picture


def write(picture: np.ndarray, text: str, at: tuple[int, int], size: float, colour: tuple[int, int, int] = INK) -> None:
    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)


def restore(checkpoint: Path) -> tuple[Config, STOP]:
    """The settings and the trained method in a checkpoint; ValueError if the method makes no maps."""
    config = Config.from_flat(read_header(checkpoint).settings)
    clip = load_clip(config.model.pretrained_clip_name, config.model.pretrained_dir)
    sha256 = backbone_sha256(clip)
    method = build_method(config.model.method, clip, **config.model.options)
    if not isinstance(method, STOP):
        raise ValueError(f"{checkpoint}: --method {config.model.method} has no maps to draw; give a checkpoint of stop")
    load_checkpoint(checkpoint, method, sha256)
    return config, method.eval()


def draw(checkpoint: Path, output: Path, videos: Sequence[str], layer: int) -> None:
    """Write the picture of some test clips (by id; the first three if none is named)."""
    config, method = restore(checkpoint)
    data = config.data
    paths = {name: Path(getattr(data, name)) for name in ("data_path", "features_path", "train_csv", "val_csv")}
    samples = DATASETS[data.datatype]("test", **paths)
    by_id = {sample.video_id: sample for sample in samples}
    unknown = [video for video in videos if video not in by_id]
    if unknown:
        raise ValueError(f"--videos {unknown[0]} is not in the test split {data.val_csv}")
    reader = FrameReader(
        data.max_frames, method.clip.visual.image_size, data.frame_sampling, data.feature_framerate, data.slice_framepos
    )
    pictures = []
    for sample in [by_id[video] for video in videos] or samples[:3]:
        video, frame_mask = reader(sample.path)
        video, frame_mask = video[frame_mask], frame_mask[frame_mask]  # padding changes nothing and shows nothing
        maps = method.prompt_maps(normalise(video[None]), frame_mask[None])
        if not -len(maps) <= layer < len(maps):
            raise ValueError(f"--layer {layer}: this checkpoint has prompts in {len(maps)} layers")
        frames = video.permute(0, 2, 3, 1).numpy()
        frames = np.stack([cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for frame in frames])
        pictures.append(draw_clip(sample, frames, maps[layer]))
    width = max(picture.shape[1] for picture in pictures)
    pictures = [np.pad(p, ((0, 10), (0, width - p.shape[1]), (0, 0)), constant_values=PAPER) for p in pictures]
    output.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(output), np.concatenate(pictures)[..., ::-1]):
        raise ValueError(f"--output {output} could not be written: give a name that ends in .png")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--output", type=Path, default=Path("maps.png"))
    parser.add_argument("--videos", nargs="*", default=[], help="ids of test clips (default: the first three)")
    parser.add_argument("--layer", type=int, default=-1, help="prompted block, from 0; negative: from the end")
    arguments = parser.parse_args(argv)
    try:
        draw(arguments.checkpoint, arguments.output, arguments.videos, arguments.layer)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
