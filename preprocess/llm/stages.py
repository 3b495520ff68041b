"""What a language model is asked about a class, and which answers are accepted.

There are two stages, as in STDD (AAAI 2025, arXiv 2412.09895); the words are our own.

    graph      the class's name -> its objects, its steps, and triples of them
    clauses    the name and the triples -> one clause a triple
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dataloaders.class_clauses import (
    CLAUSE_FIELDS,
    CLAUSES_OF,
    GRAPH_FIELDS,
    Faults,
    Lists,
    check_counts,
    check_graph,
    check_lists,
)
from dataloaders.classes import normalised, spaced
from dataloaders.quoting import quoted
from dataloaders.yaml_files import parse_yaml

Messages = list[dict[str, str]]

MOST_WORDS = 30  # of a clause; with name and template it then fits CLIP's 77 tokens
FENCED = re.compile(r"```[a-zA-Z]*\n(.*?)```", re.DOTALL)
SHOWN = 6  # faults of an answer

GRAPH_TASK = """\
You help to recognise human actions in video by describing what each action consists of.
The user gives the name of one action in square brackets. Work out, in this order:
1. the objects, tools, body parts and places that matter most for it, five to ten of them;
2. how pairs of these objects are related while the action takes place;
3. how the action itself is related to these objects;
4. the steps that the action consists of, in the order of time;
5. how the action and its steps are related to each other.
Name only what a camera can see. Answer with YAML alone: these five fields, each a list with at least one item.

obj_en_li: the objects of 1
obj_rel_triples: the relations of 2, each as "<object, relation, object>"
act_obj_triples: the relations of 3, each as "<action, relation, object>"
sub_act_en_li: the steps of 4
act_rel_triples: the relations of 5, each as "<action or step, relation, step>"

A triple has angle brackets and exactly two commas, and stands in quotation marks.

For [flip pancake] a good answer is:

obj_en_li: [pan, pancake, spatula, stove, hand]
obj_rel_triples:
- "<pancake, lies in, pan>"
- "<pan, stands on, stove>"
- "<hand, holds, spatula>"
act_obj_triples:
- "<flip pancake, turns over, pancake>"
- "<flip pancake, uses, spatula>"
sub_act_en_li: [loosening the edge, lifting it up, turning it in the air]
act_rel_triples:
- "<flip pancake, begins with, loosening the edge>"
- "<lifting it up, precedes, turning it in the air>"
"""

CLAUSES_TASK = f"""\
You write clauses that make the name of a human action more vivid.
The user gives the name of an action and three numbered lists of triples about it. For each triple write one clause that
says the same in plain English and continues the sentence "This is an example of ACTION, ...".
A clause has at most {MOST_WORDS} words, begins in lower case, has no full stop, and never repeats the name of the
action.
Answer with YAML alone: three lists, with as many clauses as the user's lists have triples, in the same order.

xprompt_oo: clauses for obj_rel_triples
xprompt_ao: clauses for act_obj_triples
xprompt_aa: clauses for act_rel_triples

For

label: flip pancake
obj_rel_triples:
1. <pancake, lies in, pan>
act_obj_triples:
1. <flip pancake, uses, spatula>
act_rel_triples:
1. <lifting it up, precedes, turning it in the air>

a good answer is:

xprompt_oo:
- "where a pancake lies in a pan"
xprompt_ao:
- "which is done with a spatula"
xprompt_aa:
- "lifting it up before turning it in the air"
"""


@dataclass(frozen=True)
class Question:
    """One class: its name as the file has it, and with `graph`, the triples to write clauses for."""

    name: str
    graph: Lists | None = None

    @property
    def words(self) -> str:
        """The name as a model reads it: in words, in lower case."""
        return spaced(self.name).lower()

    @property
    def fields(self) -> tuple[str, ...]:
        """The lists that an answer must have."""
        return GRAPH_FIELDS if self.graph is None else CLAUSE_FIELDS

    def messages(self) -> Messages:
        """Return the task and the question."""
        if self.graph is None:
            return _messages(GRAPH_TASK, f"[{self.words}]")
        lines = [f"label: {self.words}"]
        for field in CLAUSES_OF:
            lines += [f"{field}:", *(f"{n}. {triple}" for n, triple in enumerate(self.graph[field], 1))]
        return _messages(CLAUSES_TASK, "\n".join(lines))

    def expected_tokens(self) -> int:
        """Return about how many tokens a good answer has."""
        if self.graph is None:
            return 400  # 25 items of 16 tokens
        return 20 * (1 + sum(len(self.graph[field]) for field in CLAUSES_OF))

    def accept(self, answer: str) -> Lists:
        """Return the lists of an answer; ValueError says all that is wrong with it."""
        fenced = FENCED.findall(answer)
        return self.check(parse_yaml(fenced[-1] if fenced else answer))

    def check(self, content: Any) -> Lists:
        """Return the lists of parsed YAML; ValueError says all that is wrong with it."""
        if isinstance(content, Mapping) and len(content) == 1:  # under the name of the class
            ((key, inner),) = content.items()
            content = inner if normalised(key) == normalised(self.name) else content
        faults = Faults()
        if self.graph is None:
            lists = check_graph(content, "", faults)
        else:
            lists = check_lists(content, CLAUSE_FIELDS, "", faults, ("label",))
            lists = {field: tuple(clause.rstrip(" .") for clause in own) for field, own in lists.items()}
            check_counts(lists, self.graph, "", faults)
            self._check_clauses(lists, faults)
        if faults.found:
            more = f"; and {len(faults.found) - SHOWN} more" if len(faults.found) > SHOWN else ""
            raise ValueError("; ".join(faults.found[:SHOWN]) + more)
        return lists

    def _check_clauses(self, lists: Lists, faults: Faults) -> None:
        named = re.compile(rf"\b{re.escape(self.words)}\b")
        for field, own in lists.items():
            for number, clause in enumerate(own, 1):
                if named.search(clause.lower()):
                    faults.add(f"{field}, item {number}, {quoted(clause)} repeats the name of the action")
                if len(clause.split()) > MOST_WORDS:
                    faults.add(f"{field}, item {number}, has {len(clause.split())} words, more than {MOST_WORDS}")


def ask_again(messages: Messages, answer: str, fault: str) -> Messages:
    """Return the first two messages with a faulty answer and what is wrong with it."""
    told = [{"role": "assistant", "content": answer}] if answer.strip() else []
    fix = f"This answer cannot be used: {fault}. Give the whole answer again, as YAML alone, without this fault."
    return [*messages[:2], *told, {"role": "user", "content": fix}]


def _messages(task: str, question: str) -> Messages:
    return [{"role": "system", "content": task}, {"role": "user", "content": question}]
