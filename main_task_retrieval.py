"""Text-video retrieval: train a method on a data set and evaluate it, or evaluate it only.

    one process        python main_task_retrieval.py --do_train --method clip4clip --datatype msrvtt ...
    many GPUs          torchrun --standalone --nproc_per_node=4 main_task_retrieval.py --do_train ...
    zero-shot          python main_task_retrieval.py --do_eval --method clip4clip ...          (CLIP as it is)
    a checkpoint       python main_task_retrieval.py --do_eval --init_model runs/mine/last.safetensors ...
    parameters, GFLOP  python main_task_retrieval.py --describe --method clip4clip --pretrained_clip_name ViT-B/32

`scripts/msrvtt.sh` fills in the rest; `--help` lists every flag. The run itself is in `engine/run.py`, the retrieval
task in `engine/tasks/retrieval.py`.
"""

import sys
from collections.abc import Sequence

from engine import run
from engine.tasks.retrieval import Retrieval


def main(argv: Sequence[str] | None = None) -> int:
    """Run from a command line (`sys.argv` if None); return the exit code."""
    return run.main(Retrieval, argv)


if __name__ == "__main__":
    sys.exit(main())
