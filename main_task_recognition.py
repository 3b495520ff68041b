"""Action recognition: train a method on a data set with classes and evaluate it, or evaluate it only.

    one process        python main_task_recognition.py --do_train --method stop --datatype ucf101 --split 1 ...
    many GPUs          torchrun --standalone --nproc_per_node=4 main_task_recognition.py --do_train ...
    zero-shot          python main_task_recognition.py --do_eval --method clip4clip ...        (CLIP as it is)
    a checkpoint       python main_task_recognition.py --do_eval --init_model runs/mine/last.safetensors ...
    few-shot           python main_task_recognition.py --do_train --shots 16 ...
    base to novel      python main_task_recognition.py --do_train --shots 16 --classes base ...
    parameters, GFLOP  python main_task_recognition.py --describe --method stop --pretrained_clip_name ViT-B/32

A checkpoint may be one of retrieval. `scripts/ucf101.sh` fills in the rest; `--help` lists every flag. The run itself
is in `engine/run.py`, the task in `engine/tasks/recognition.py`.
"""

import sys
from collections.abc import Sequence

from engine import run
from engine.tasks.recognition import Recognition


def main(argv: Sequence[str] | None = None) -> int:
    """Run from a command line (`sys.argv` if None); return the exit code."""
    return run.main(Recognition, argv)


if __name__ == "__main__":
    sys.exit(main())
