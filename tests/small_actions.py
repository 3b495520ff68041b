"""A data set of small mp4 files with classes, in UCF101's layout, with the weights of a tiny CLIP.

A bright half wanders over the frames of the moving classes, so that MoveLeft is MoveRight played backwards, and its
mirror image; the other two classes are colours.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from modules.clip_weights import to_openai_keys
from tests.tiny import TINY, tiny_clip
from tests.videos import write_video

CLASSES = ("MoveLeft", "MoveRight", "ShowGreen", "ShowRed")
GROUPS = {"train": range(8, 12), "test": range(1, 4)}  # as in UCF101, whose test groups come first
FRAMES, HEIGHT, WIDTH = 6, 48, 64


@dataclass(frozen=True)
class SmallActions:
    """The folder of the data set, with `videos` and `lists`, and the file of the CLIP."""

    folder: Path
    clip: Path

    @property
    def videos(self) -> Path:
        return self.folder / "videos"

    @property
    def lists(self) -> Path:
        return self.folder / "ucfTrainTestlist"

    def flags(self) -> list[str]:
        """Return the flags that name the files, and settings for clips this small."""
        return [
            "--datatype", "ucf101", "--data_path", str(self.lists), "--features_path", str(self.videos),
            "--pretrained_clip_name", str(self.clip), "--feature_framerate", "0", "--num_thread_reader", "0",
            "--max_frames", "3", "--max_words", "16", "--n_display", "1", "--precision", "fp32",
            "--frame_sampling", "segment",
        ]  # fmt: skip


def frames_of(name: str, rng: np.random.Generator) -> np.ndarray:
    """Return uint8 frames `[T,H,W,3]` of a class."""
    frames = rng.integers(0, 60, (FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    if name.startswith("Show"):
        frames[..., 0 if name == "ShowRed" else 1] = 220
        return frames
    for t in range(FRAMES):
        left = round((WIDTH - 16) * t / (FRAMES - 1))
        frames[t, :, left : left + 16] = 230
    return frames if name == "MoveRight" else frames[::-1].copy()


def write_small_actions(folder: Path) -> SmallActions:
    """Write 2 clips of each training group and 1 of each test group: 32 training and 12 test videos."""
    data = SmallActions(folder, folder / "clip.safetensors")
    data.lists.mkdir(parents=True)
    rng = np.random.default_rng(0)
    (data.lists / "classInd.txt").write_text("".join(f"{n} {name}\n" for n, name in enumerate(CLASSES, 1)))
    (data.lists / "twins.csv").write_text("class,reversed\nMoveLeft,MoveRight\n")
    (data.lists / "base_classes.txt").write_text("MoveLeft\nShowRed\n")
    (data.lists / "flip_map.csv").write_text("class,mirrored\nMoveLeft,MoveRight\n")
    for split, groups in GROUPS.items():
        lines = []
        for number, name in enumerate(CLASSES, 1):
            (data.videos / name).mkdir(parents=True, exist_ok=True)
            for group in groups:
                for clip in range(1, 3 if split == "train" else 2):
                    path = f"{name}/v_{name}_g{group:02}_c{clip:02}.mp4"
                    write_video(data.videos / path, frames_of(name, rng), fps=3)
                    lines.append(f"{path} {number}" if split == "train" else path)
        (data.lists / f"{split}list01.txt").write_text("\n".join(lines) + "\n")
    save_file(to_openai_keys(tiny_clip(architecture=TINY).state_dict()), data.clip, {"activation": "quick_gelu"})
    return data
