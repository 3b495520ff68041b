"""Recognition of a split: scores against a plain loop, views and their fusion, batches, caches and left-out videos."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from dataloaders.datasets import ViewedVideos
from dataloaders.views import Views
from engine.config import Config
from engine.data import normalise_for
from engine.distributed import Process
from engine.tasks.predictions import read_predictions
from engine.tasks.recognition import Recognition, RecognitionSettings, class_texts
from engine.tasks.recognition_metrics import fuse
from main_task_recognition import main
from modules.clip_weights import load_clip
from modules.methods import build_method
from modules.similarity import cosine_similarity
from tests.engine.tasks.test_token_level import WordsAndFrames
from tests.training_runs import ROOT, lines_of

ALONE = Process(0, 1, torch.device("cpu"))


def a_task(small_actions, tmp_path, method: str = "clip4clip", token_level: bool = False, **settings) -> Recognition:
    """Return the task of an evaluation, with its step built."""
    own = {
        "describe": True, "precision": "fp32", "num_thread_reader": 0, "max_frames": 3, "max_words": 16,
        "feature_framerate": 0.0, "frame_sampling": "segment", "output_dir": str(tmp_path),
        "data_path": str(small_actions.lists), "features_path": str(small_actions.videos), "method": method,
    }  # fmt: skip
    config = Config.from_flat(own | settings, RecognitionSettings)
    clip = load_clip(small_actions.clip)
    built = WordsAndFrames(clip) if token_level else build_method(method, clip)
    task = Recognition(config, built, ALONE)
    task.step()
    return task


@pytest.mark.parametrize("fusion", ["logits", "softmax", "features"])
def test_scores_of_views_by_a_plain_loop(small_actions, tmp_path, fusion):
    task = a_task(small_actions, tmp_path, test_views="2x3", view_fusion=fusion, batch_size_val=7)
    samples = task.splits.read("test")
    metrics = task.evaluate(task.evaluation("test", samples), final=True)
    method = task.method.eval()
    texts = class_texts(("move left", "move right", "show green", "show red"), ["a video of a person {}."])
    with torch.no_grad():
        rows = torch.cat([method.encode_text(task.splits.tokenizer(own)) for own in texts])
        videos = ViewedVideos(samples, task.splits.frame_reader(training=False), Views(2, 3))
        right, expected = [], []
        for number, sample in enumerate(samples):
            views, frame_mask = videos[number]["video"], videos[number]["frame_mask"]
            clips = [
                method.encode_video(normalise_for(method.clip, views[v : v + 1]), frame_mask[v : v + 1])
                for v in range(6)
            ]
            scale = method.clip.logit_scale
            if fusion == "features":
                unit = [clip / clip.norm() for clip in clips]
                fused = cosine_similarity(rows, sum(unit) / 6, scale)[:, 0]
            else:
                scores = torch.stack([cosine_similarity(rows, clip, scale)[:, 0] for clip in clips])
                fused = (scores.softmax(dim=1) if fusion == "softmax" else scores).mean(dim=0)
            expected.append(fused)
            right.append(task.classes.keys[int(fused.argmax())] == sample.label)
    assert metrics["recognition"]["top1"] == pytest.approx(100 * np.mean(right))
    found = read_predictions(tmp_path / "predictions.csv").scores()
    torch.testing.assert_close(found.float(), torch.stack(expected), atol=1e-4, rtol=1e-4)


def test_batches_of_any_size_give_the_same_scores(small_actions, tmp_path):
    found = []
    for size in (1, 5, 64):
        task = a_task(small_actions, tmp_path, batch_size_val=size)
        split = task.evaluation("test", task.splits.read("test"))
        found.append(task.score(split, Views(2, 1), of_features=True))
    for scores in found[1:]:
        torch.testing.assert_close(scores.views, found[0].views)
        torch.testing.assert_close(scores.of_features, found[0].of_features)
    assert found[0].views.shape == (12, 2, 4)


def test_one_view_has_the_score_of_its_feature(small_actions, tmp_path):
    task = a_task(small_actions, tmp_path)
    scores = task.score(task.evaluation("test", task.splits.read("test")), Views(), of_features=True)
    torch.testing.assert_close(scores.of_features, scores.views[:, 0])
    torch.testing.assert_close(fuse(scores.views, "features").float(), scores.views[:, 0])


def test_evaluations_that_select_weights_have_one_view_and_write_nothing(small_actions, tmp_path):
    task = a_task(small_actions, tmp_path / "run", test_views="3x3", view_fusion="softmax")
    split = task.evaluation("test", task.splits.read("test"))
    plain = a_task(small_actions, tmp_path / "plain").evaluate(split, final=True)
    assert task.evaluate(split) == plain
    assert not (tmp_path / "run").exists()
    assert (tmp_path / "plain" / "predictions.csv").is_file()
    assert task.told == {}


def test_a_token_level_method_is_scored_but_its_features_are_not_fused(small_actions, tmp_path):
    task = a_task(small_actions, tmp_path, token_level=True, test_views="2x1")
    metrics = task.evaluate(task.evaluation("test", task.splits.read("test")), final=True)
    assert 0 <= metrics["recognition"]["top1"] <= 100
    with pytest.raises(ValueError, match="--view_fusion features needs one vector of a clip, and --method"):
        a_task(small_actions, tmp_path, token_level=True, view_fusion="features")


def test_evaluation_in_another_precision_encodes_the_texts_anew(small_actions, tmp_path):
    """A frozen text side has one encoding in training's precision; another precision gets its own."""
    split = None
    for precision, same in (("same", True), ("fp32", False)):
        task = a_task(small_actions, tmp_path, "stdd", precision="bf16", precision_val=precision)
        split = task.evaluation("test", task.splits.read("test"))
        assert (task.classifier(split) is task._step.frozen_classifier()) is same


def test_scores_are_in_fp32_in_any_precision(small_actions, tmp_path, monkeypatch):
    task = a_task(small_actions, tmp_path, precision="bf16", test_views="2x1")
    split, seen, similarity = task.evaluation("test", task.splits.read("test")), [], type(task.method).similarity

    def watched(self, text, video):
        seen.append(torch.is_autocast_enabled("cpu"))
        return similarity(self, text, video)

    monkeypatch.setattr(type(task.method), "similarity", watched)
    task.score(split, Views(2, 1), of_features=True)
    assert seen
    assert not any(seen)


def test_a_cache_and_missing_videos(small_actions, tmp_path):
    """A cache changes no number; a missing video is refused, or counted where it is allowed."""
    links = tmp_path / "videos"
    for folder in small_actions.videos.iterdir():
        (links / folder.name).mkdir(parents=True)
        for video in folder.iterdir():
            if video.name != "v_ShowRed_g02_c01.mp4":
                (links / folder.name / video.name).symlink_to(video)
    flags = ["--do_eval", *small_actions.flags(), "--features_path", str(links), "--test_views", "3x1"]
    assert main([*flags, "--output_dir", str(tmp_path / "refused")]) == 2
    cache = ["--frame_cache", str(tmp_path / "cache")]
    found = []
    for name, more in (("plain", []), ("filled", cache), ("cached", cache)):
        assert main([*flags, "--allow_missing", "1", *more, "--output_dir", str(tmp_path / name)]) == 0
        (line,) = lines_of(tmp_path / name, "test")
        found.append({key: value for key, value in line.items() if key.startswith("top1") or key == "videos"})
    assert found[0]["videos"] == "11 of 12"
    assert found[1] == found[0]
    assert (
        len(list((tmp_path / "cache").rglob("*.safetensors"))) == 11
    )  # trying the videos first has cached all views at once, and nothing else
    assert found[2] == found[0]


MANY = """
import resource, sys
from dataclasses import replace
from pathlib import Path
from tests.small_actions import SmallActions
from tests.engine.tasks.test_recognition import a_task
from dataloaders.views import Views

folder = Path(sys.argv[1])
task = a_task(SmallActions(folder, folder / "clip.safetensors"), folder)
split = task.evaluation("test", task.splits.read("test"))
peaks = []
for count in (100, 1000):
    samples = [split.samples[number % 12] for number in range(count)]
    assert task.score(replace(split, samples=samples), Views(3, 3), False).views.shape == (count, 9, 4)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(peaks[1] - peaks[0])
"""


@pytest.mark.slow
def test_the_memory_of_many_videos_with_many_views_stays_flat(small_actions):
    """Check the memory; the frames of 900 more videos in 9 views would take 75 MB, those of real size 11 GB."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MANY, str(small_actions.folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, cwd=ROOT)
    assert float(done.stdout) < 20  # MiB
