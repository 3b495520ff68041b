"""A data set of a few small mp4 files in MSR-VTT's file formats, with the weights of a tiny CLIP."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from modules.clip_weights import to_openai_keys
from tests.tiny import TINY, tiny_clip
from tests.videos import write_video

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "yellow": (230, 220, 40)}
SIDES = ("left", "right")


@dataclass(frozen=True)
class SmallData:
    """The folder of the data set and the file of the CLIP."""

    folder: Path
    clip: Path

    @property
    def videos(self) -> Path:
        return self.folder / "videos"

    def flags(self) -> list[str]:
        """Return the flags that name the files, and settings for clips this small."""
        return [
            "--train_csv", str(self.folder / "MSRVTT_train.9k.csv"),
            "--val_csv", str(self.folder / "MSRVTT_JSFUSION_test.csv"),
            "--data_path", str(self.folder / "MSRVTT_data.json"),
            "--features_path", str(self.videos),
            "--pretrained_clip_name", str(self.clip),
            "--expand_msrvtt_sentences", "--feature_framerate", "0", "--num_thread_reader", "0",
            "--max_frames", "3", "--max_words", "12", "--n_display", "2", "--precision", "fp32",
        ]  # fmt: skip


def write_small_data(folder: Path, n_train: int = 10, n_test: int = 7) -> SmallData:
    """Write clips in which half of the frame is coloured. Training videos have two captions, test videos one."""
    data = SmallData(folder, folder / "clip.safetensors")
    data.videos.mkdir(parents=True)
    rng = np.random.default_rng(0)
    sentences, names = [], {}
    for number in range(n_train + n_test):
        video_id = f"video{number}"
        colour, side = list(COLOURS)[number % 4], SIDES[number // 4 % 2]
        frames = rng.integers(0, 60, (5, 48, 64, 3), dtype=np.uint8)
        half = slice(0, 32) if side == "left" else slice(32, 64)
        frames[:, :, half] = COLOURS[colour]
        write_video(data.videos / f"{video_id}.mp4", frames, fps=3)
        names[video_id] = f"a {colour} half on the {side} in film {number}"
        sentences += [{"video_id": video_id, "caption": text} for text in (names[video_id], f"{side} is {colour}")]
    train, test = list(names)[:n_train], list(names)[n_train:]
    (folder / "MSRVTT_data.json").write_text(json.dumps({"sentences": sentences}))
    with open(folder / "MSRVTT_train.9k.csv", "w", newline="") as file:
        csv.writer(file).writerows([["video_id"], *([video_id] for video_id in train)])
    with open(folder / "MSRVTT_JSFUSION_test.csv", "w", newline="") as file:
        rows = [[f"ret{n}", f"msr{n}", video_id, names[video_id]] for n, video_id in enumerate(test)]
        csv.writer(file).writerows([["key", "vid_key", "video_id", "sentence"], *rows])
    save_file(to_openai_keys(tiny_clip(architecture=TINY).state_dict()), data.clip, {"activation": "quick_gelu"})
    return data
