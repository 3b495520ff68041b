"""All tasks, by their name in checkpoints. A new task needs a file in this folder, a line here, and a program."""

from engine.tasks.base import Task
from engine.tasks.recognition import Recognition
from engine.tasks.retrieval import Retrieval

TASKS: dict[str, type[Task]] = {"retrieval": Retrieval, "recognition": Recognition}
