"""Ask a language model for the clauses of classes, in the two stages of STDD (AAAI 2025, arXiv 2412.09895).

    export OPENAI_API_KEY=...                          OPENAI_BASE_URL=http://127.0.0.1:8000/v1 for a server of your own
    python preprocess/llm_texts.py graph --labels labels.json --output graph.yaml --model gpt-4o-mini --yes
    python preprocess/llm_texts.py clauses --graph graph.yaml --output clauses.yaml --model gpt-4o-mini --yes

`graph` asks for what each class consists of, as triples; `clauses` asks for one clause a triple. The output is what
preprocess/text_features.py reads. Any endpoint with OpenAI's interface for chats will do (pip install -r
requirements-llm.txt). Without --yes, the command only says what it would ask and what that costs.

Every answer is checked. If it is wrong, the model is told why and asked again, --attempts times in all. A good answer
is written into OUTPUT.partial at once, so the command can be interrupted or killed at any moment without loss. When run
again, it asks only what is missing. OUTPUT appears when all classes are there.
Exit code: 0 if it is there, or without --yes; 1 if some classes have no good answer, 2 for a wrong command or an
endpoint that cannot be used, 130 if interrupted.
"""

import argparse
import queue
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataloaders.class_clauses import GRAPH, LABELS, Lists, read_clauses, read_graph
from dataloaders.classes import read_labels
from dataloaders.quoting import quoted, shorten, some
from dataloaders.yaml_files import read_yaml
from engine.flags import check_file, finite_float
from engine.writing import write_atomically
from preprocess.llm.endpoint import Endpoint, RefusedError
from preprocess.llm.stages import Question, ask_again
from preprocess.shards import exit_code

TEMPERATURE = {"graph": 0.0, "clauses": 0.7}
CHARACTERS = 4  # of a token, about
GIVE_UP = 5  # classes without a good answer, before there is any


class Answers:
    """The good answers so far, in the order of the classes, and their file."""

    def __init__(self, output: Path, questions: Sequence[Question], made_by: str) -> None:
        self.output, self.partial = output, output.with_name(output.name + ".partial")
        self.questions, self.found, self.made_by = questions, dict[str, Lists](), made_by

    def read_partial(self) -> None:
        """Take the good answers of an earlier run; ValueError if they are of other classes or of another model."""
        if not self.partial.exists():
            return
        first = self.partial.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
        if first.startswith("# Asked of ") and self.made_by and first != f"# {self.made_by}":
            raise ValueError(
                f"--output {self.partial} begins with {quoted(first[2:])}: pass the same --model and --temperature, or "
                "remove it"
            )
        content, questions = (
            read_yaml(self.partial, "--output"),
            {question.name: question for question in self.questions},
        )
        if not isinstance(content, dict) or not content.keys() <= questions.keys():
            raise ValueError(
                f"--output {self.partial} has the answers of other classes: remove it, or name another file"
            )
        for name, entry in content.items():
            try:
                self.found[name] = questions[name].check(entry)
            except ValueError as error:
                print(f"{self.partial}: the answer for {name} is not used ({shorten(str(error), 200)})")

    def missing(self) -> list[Question]:
        return [question for question in self.questions if question.name not in self.found]

    def add(self, question: Question, lists: Lists) -> None:
        """Write an answer."""
        self.found[question.name] = lists
        self._write(self.partial)

    def finish(self) -> None:
        """Write the output in place of the partial file."""
        self._write(self.output)
        self.partial.unlink(missing_ok=True)

    def _write(self, path: Path) -> None:
        entries: dict[str, Any] = {}
        for question in self.questions:
            if (lists := self.found.get(question.name)) is not None:
                entries[question.name] = {"label": question.words} | {
                    field: list(lists[field]) for field in question.fields
                }
        text = f"# {self.made_by}\n" + yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=10**6)
        write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def ask(endpoint: Endpoint, question: Question, attempts: int) -> Lists:
    """Return a good answer; ValueError with the last fault after `attempts` answers. OSError: no endpoint."""
    messages, fault = question.messages(), ""
    for _ in range(attempts):
        answer = ""
        try:
            answer = endpoint.ask(messages)
            return question.accept(answer)
        except RefusedError as error:
            fault, messages = str(error), question.messages()
        except ValueError as error:
            fault, messages = str(error), ask_again(messages, answer, str(error))
    raise ValueError(fault)


def ask_all(
    endpoint: Endpoint, questions: Sequence[Question], attempts: int, jobs: int
) -> Iterator[tuple[Question, Lists | ValueError]]:
    """Yield each question with its answer, or with the last fault, as they come; raises what is no ValueError."""
    waiting: queue.SimpleQueue[Question] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Question, Lists | Exception]] = queue.SimpleQueue()
    for question in questions:
        waiting.put(question)

    def work() -> None:
        while True:
            try:
                question = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((question, ask(endpoint, question, attempts)))
            except Exception as error:  # raised again in the main thread
                done.put((question, error))
                if not isinstance(error, ValueError):  # it ends the command: ask nothing more
                    return

    for _ in range(min(jobs, len(questions))):  # daemons, so that Ctrl-C does not wait for their answers
        threading.Thread(target=work, daemon=True).start()
    for _ in questions:
        question, result = done.get()
        if isinstance(result, Exception) and not isinstance(result, ValueError):
            raise result
        yield question, result


def estimate(questions: Sequence[Question], options: argparse.Namespace) -> str:
    """Return what asking all questions takes: calls, tokens and cost, expected and at most."""
    calls, attempts = len(questions), options.attempts
    asked = [sum(len(message["content"]) for message in question.messages()) for question in questions]
    tokens_in = sum(asked) // CHARACTERS
    tokens_out = sum(question.expected_tokens() for question in questions)
    cost = _cost(tokens_in, tokens_out, options)
    lines = [f"{calls} calls, about {tokens_in:,} tokens in and {tokens_out:,} tokens out{cost}."]
    if options.max_tokens and attempts > 1:
        again = (attempts - 1) * (tokens_in + calls * options.max_tokens)  # each time with the answer before
        most_in, most_out = tokens_in + again, calls * attempts * options.max_tokens
        lines.append(
            f"At most, if every answer is wrong and as long as --max_tokens {options.max_tokens}: {calls * attempts} "
            f"calls, {most_in:,} tokens in and {most_out:,} tokens out{_cost(most_in, most_out, options)}."
        )
    elif not options.max_tokens:
        lines.append("There is no upper bound with --max_tokens 0.")
    return "\n".join(lines)


def _cost(tokens_in: int, tokens_out: int, options: argparse.Namespace) -> str:
    if options.price_in is None or options.price_out is None:
        return ", of unknown cost without --price_in and --price_out"
    return f", which cost {(tokens_in * options.price_in + tokens_out * options.price_out) / 1e6:,.2f}"


def questions_of(options: argparse.Namespace) -> list[Question]:
    """Return a question for each class; ValueError or OSError for a wrong file."""
    names = read_labels(options.labels, LABELS) if options.labels else None
    if options.stage == "graph":
        if names is None or options.graph:
            raise ValueError(f"graph takes {LABELS} with the names of the classes, and no {GRAPH}")
        return [Question(name) for name in names]
    if not options.graph:
        raise ValueError(f"clauses needs {GRAPH}, the file that the first stage wrote")
    keys, graphs = read_graph(options.graph, names)
    return [Question(name, graph) for name, graph in zip(keys, graphs, strict=True)]


def check_output(options: argparse.Namespace, questions: Sequence[Question]) -> None:
    """Check that the output is complete; raises ValueError if it is another file."""
    names, fix = [question.name for question in questions], "remove it, or name another file"
    try:
        if options.stage == "graph":
            read_graph(options.output, names, flag="--output")
        else:
            graphs = [question.graph or {} for question in questions]
            read_clauses(options.output, names, graphs=graphs, flag="--output")
    except ValueError as error:
        raise ValueError(f"{str(error).partition(': correct')[0]}: {fix}") from error


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    add = parser.add_argument
    add("stage", nargs="?", choices=list(TEMPERATURE), help="what is asked for")
    add(LABELS, type=Path, help="names of the classes: yaml, json, csv or txt (docs/recognition.md)")
    add(GRAPH, type=Path, help="clauses: the file of the first stage")
    add("--output", type=Path, help="YAML file to write")
    add("--model", default="", help="name of the model at the endpoint; needed with --yes")
    add("--yes", action="store_true", help="ask; without it, only say what would be asked and what that costs")
    add("--price_in", type=finite_float, help="price of a million tokens in")
    add("--price_out", type=finite_float, help="price of a million tokens out")
    add("--temperature", type=finite_float, help="default: 0 for graph, 0.7 for clauses; -1: not sent")
    add("--max_tokens", type=int, default=1024, help="tokens of an answer; 0: not sent (default: 1024)")
    add("--attempts", type=int, default=3, help="answers to a question before the class is given up (default: 3)")
    add("--retries", type=int, default=10, help="repetitions of a call that fails in passing (default: 10)")
    add("--timeout", type=finite_float, default=120.0, help="seconds that an answer may take (default: 120)")
    add("--jobs", type=int, default=4, help="questions at a time (default: 4)")
    return parser


def check_options(options: argparse.Namespace) -> None:
    """Raise ValueError for what is not given, and for a number that is out of range."""
    if options.stage is None:
        raise ValueError(f"no stage is given: name one of {', '.join(TEMPERATURE)}")
    if options.output is None:
        raise ValueError("--output is not given: name the YAML file to write")
    for name, least in (("attempts", 1), ("jobs", 1), ("max_tokens", 0), ("retries", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name} {getattr(options, name)} is out of range: it takes a number at least {least}")
    for name in ("price_in", "price_out"):
        if (getattr(options, name) or 0) < 0:
            raise ValueError(f"--{name} {getattr(options, name):g} is out of range: it takes a number at least 0")
    if options.timeout <= 0:
        raise ValueError(f"--timeout {options.timeout:g} is out of range: it takes a number of seconds above 0")
    if options.temperature is None:
        options.temperature = TEMPERATURE[options.stage]
    if options.temperature != -1 and not 0 <= options.temperature <= 2:
        raise ValueError(f"--temperature {options.temperature:g} is out of range: it takes 0 to 2, or -1")
    if options.yes and not options.model:
        raise ValueError("--model is not given: name the model to ask")
    check_file("--output", options.output, (".yaml", ".yml"))


def run(argv: Sequence[str] | None) -> int:
    """Run the command; returns the exit code 0 or 1. ValueError or OSError if it cannot start or continue."""
    options, unknown = parser().parse_known_args(argv)
    if unknown:
        raise ValueError(f"unknown argument {quoted(unknown[0])}; --help lists the flags")
    check_options(options)
    questions = questions_of(options)
    if options.output.exists():
        check_output(options, questions)
        print(f"{options.output} is there already.")
        return 0
    sent = "" if options.temperature == -1 else f" at temperature {options.temperature:g}"
    asked = f"Asked of {shorten(options.model)}{sent} by preprocess/llm_texts.py {options.stage}."
    made_by = asked if options.model else ""  # it may be left out without --yes, where nothing is written
    answers = Answers(options.output, questions, made_by)
    answers.read_partial()
    missing = answers.missing()
    print(f"{options.stage}: {len(questions)} classes, {len(missing)} to ask.")
    print(estimate(missing, options), flush=True)
    if not options.yes:
        print("Nothing was asked. Add --yes to ask.")
        return 0
    failed = ask_missing(answers, missing, options) if missing else {}
    if failed:
        for name, fault in failed.items():
            print(f"{name}: {shorten(fault, 400)}", file=sys.stderr)
        print(
            f"{len(failed)} classes have no good answer after {options.attempts} attempts ({some(list(failed))}): run "
            f"the same command again to ask for them, or write them into {answers.partial}.",
            file=sys.stderr,
        )
        return 1
    answers.finish()
    print(f"{options.output}: {len(questions)} classes.")
    return 0


def ask_missing(answers: Answers, missing: Sequence[Question], options: argparse.Namespace) -> dict[str, str]:
    """Ask and write answers; returns the last fault of each class that has none."""
    temperature = None if options.temperature == -1 else options.temperature
    endpoint = Endpoint(options.model, temperature, options.max_tokens, options.timeout, options.retries)
    failed, good = dict[str, str](), 0
    try:
        results = ask_all(endpoint, missing, options.attempts, options.jobs)
        for question, result in tqdm(results, "answers", len(missing), unit="class"):
            if isinstance(result, ValueError):
                failed[question.name] = str(result)
                if not good and len(failed) == GIVE_UP:
                    name, fault = next(iter(failed.items()))
                    raise ValueError(
                        f"the first {GIVE_UP} classes have no good answer (as {name}: {shorten(fault, 600)}): try "
                        "another --model"
                    )
            else:
                answers.add(question, result)
                good += 1
    finally:
        used = endpoint.usage
        print(
            f"{used.calls} answers, {used.tokens_in:,} tokens in and {used.tokens_out:,} tokens out"
            f"{_cost(used.tokens_in, used.tokens_out, options)}.", flush=True,
        )  # fmt: skip
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return exit_code(lambda: run(argv), "run the same command again to go on.")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: schedulers end jobs with it
    raise SystemExit(main())
