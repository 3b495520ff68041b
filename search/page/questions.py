"""What the page may ask: the fields of a query, their types and limits, and an answer in JSON."""

import os
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from search.index import Hit, parse_hit, parse_moment

LONGEST = 500  # characters of a text
MOST_TEXTS = 10  # further texts, and texts to subtract
MOST_HITS = 100

Text = Annotated[str, Field(max_length=LONGEST)]
Weighted = tuple[Text, Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]]
Count = Annotated[int, Field(strict=True, ge=1, le=MOST_HITS)]


class Question(BaseModel):
    """The JSON of POST /api/query. The fields are the flags of `python -m search query`."""

    model_config = ConfigDict(extra="forbid")

    text: Text = ""
    also: Annotated[list[Weighted], Field(max_length=MOST_TEXTS)] = []
    without: Annotated[list[Weighted], Field(max_length=MOST_TEXTS)] = []
    like: Annotated[str, Field(max_length=40)] | None = None
    patterns: Annotated[list[Text], Field(alias="in", max_length=MOST_TEXTS)] = []
    after: Annotated[str, Field(max_length=40)] | None = None
    before: Annotated[str, Field(max_length=40)] | None = None
    top: Count = 20
    per_file: Count = 3
    alike: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] = 1.0
    model: Text | None = None

    @classmethod
    def parse(cls, body: bytes) -> "Question":
        """Return the question of a request's body; ValueError with one sentence for anything else."""
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            raise ValueError(say(error.errors())) from None

    @property
    def is_text(self) -> bool:
        """Return whether it is one text and nothing else, whose score can say that nothing fits."""
        return bool(self.text) and not (self.also or self.without or self.like)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `Index.query`; ValueError for dates and ids that are none."""
        try:
            like = parse_hit(self.like) if self.like else None
        except ValueError:
            raise ValueError("like: is no id of a moment, such as 12:3") from None
        return {
            "text": self.text,
            "like": like,
            "also": self.also,
            "without": self.without,
            "patterns": [pattern for pattern in self.patterns if pattern],
            "after": parse_moment("after", self.after) if self.after else None,
            "before": parse_moment("before", self.before) if self.before else None,
            "top": self.top,
            "per_file": self.per_file,
            "alike": self.alike,
        }


def say(errors: Sequence[Any]) -> str:
    """Return pydantic's first error as one sentence."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("query", "body"))
    message = " ".join(str(first["msg"]).split())
    return f"{place}: {message[0].lower()}{message[1:]}" if place else message


def readable(path: str) -> str:
    """Return a path as text that JSON can carry: bytes that are not UTF-8 become question marks in a box."""
    return os.fsencode(path).decode("utf-8", "replace")


def answer(hits: Sequence[Hit], shown: Sequence[str], durations: Sequence[float], names: Sequence[str]) -> list[Any]:
    """Return hits as JSON. `shown` are their paths as people know them, `names` their ids."""
    return [
        {
            "id": name,
            "file": readable(path),
            "start": hit.start,
            "end": hit.end,
            "score": round(hit.score, 4),
            "above": round(hit.above, 2),
            "duration": duration,
        }
        for hit, path, duration, name in zip(hits, shown, durations, names, strict=True)
    ]
