"""Asking a language model about classes, against a server that answers well, badly, slowly and not at all."""

import json
import logging
import re
from pathlib import Path

import pytest
import yaml

from dataloaders.class_clauses import read_clauses, read_graph
from preprocess.llm_texts import main
from tests.preprocess.chat_server import Body, Reply, chat_server

openai = pytest.importorskip("openai")

KEY = "sk-secret-0123456789abcdef"
NAMES = ("PeelOrange", "jump_rope", "tai chi")
WORDS = {"peel orange": "PeelOrange", "jump rope": "jump_rope", "tai chi": "tai chi"}
GRAPH = {
    "obj_en_li": ["orange", "thumb"],
    "obj_rel_triples": ["<thumb, presses, orange>"],
    "act_obj_triples": ["<it, uses, knife>", "<it, needs, thumb>"],
    "sub_act_en_li": ["scoring", "pulling"],
    "act_rel_triples": ["<scoring, precedes, pulling>"],
}
CLAUSES = {
    "xprompt_oo": ["where a thumb presses"],
    "xprompt_ao": ["which uses a knife.", "which needs a thumb"],
    "xprompt_aa": ["scoring before pulling"],
}


def dump(content) -> str:
    """Return YAML without references to a list that stands in several places."""
    return yaml.safe_dump(json.loads(json.dumps(content)), sort_keys=False)


GOOD = Reply(dump(GRAPH))


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.01)  # half a second, to begin with


@pytest.fixture
def labels(tmp_path) -> Path:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({str(number): name for number, name in enumerate(NAMES)}))
    return path


@pytest.fixture
def graph(labels) -> Path:
    """The file of the first stage."""
    path = labels.parent / "graph.yaml"
    path.write_text(dump({name: {"label": name, **GRAPH} for name in NAMES}))
    return path


@pytest.fixture
def ask(monkeypatch, labels):
    """Run the first stage against a server; returns the exit code, and the server with what it was asked."""

    def run(reply, *flags: str):
        with chat_server(reply) as chats:
            monkeypatch.setenv("OPENAI_BASE_URL", chats.url)
            code = main(["graph", "--labels", str(labels), "--output", str(labels.parent / "out.yaml"),
                         "--model", "stub", "--yes", "--jobs", "1", *flags])  # fmt: skip
        return code, chats

    return run


def class_in(body: Body) -> str:
    """Return the class that a request asks about."""
    return WORDS[re.search(r"\[(.+)\]|label: (.+)", body["messages"][1]["content"])[1]]


def always(reply: Reply):
    return lambda body, number: reply


def test_both_stages(monkeypatch, labels, capsys):
    graph, clauses = labels.parent / "graph.yaml", labels.parent / "clauses.yaml"

    def reply(body: Body, number: int) -> Reply:
        if "obj_en_li" in body["messages"][0]["content"]:
            return Reply(f"Here it is:\n```yaml\n{dump(GRAPH)}```\n")
        return Reply(dump(CLAUSES))

    with chat_server(reply) as chats:
        monkeypatch.setenv("OPENAI_BASE_URL", chats.url)
        common = ["--model", "stub", "--yes", "--price_in", "2", "--price_out", "10"]
        assert main(["graph", "--labels", str(labels), "--output", str(graph), *common]) == 0
        assert main(["clauses", "--graph", str(graph), "--output", str(clauses), *common]) == 0
        assert main(["clauses", "--graph", str(graph), "--output", str(clauses), *common]) == 0
    assert len(chats.asked) == 6  # and none for the third command
    assert sorted(body["messages"][1]["content"] for body in chats.asked[:3]) == [
        "[jump rope]",
        "[peel orange]",
        "[tai chi]",
    ]
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in chats.asked} == {
        ("stub", 0.0, 1024), ("stub", 0.7, 1024),
    }  # fmt: skip
    question = next(
        body["messages"][1]["content"] for body in chats.asked[3:] if "peel" in body["messages"][1]["content"]
    )
    assert question.splitlines() == [
        "label: peel orange", "obj_rel_triples:", "1. <thumb, presses, orange>", "act_obj_triples:",
        "1. <it, uses, knife>", "2. <it, needs, thumb>", "act_rel_triples:", "1. <scoring, precedes, pulling>",
    ]  # fmt: skip
    names, graphs = read_graph(graph, NAMES)
    assert names == NAMES
    assert {field: list(items) for field, items in graphs[0].items()} == GRAPH
    _, found = read_clauses(clauses, NAMES, graphs=graphs)
    assert found[2]["xprompt_ao"] == ("which uses a knife", "which needs a thumb")
    assert not list(labels.parent.glob("*.partial"))
    printed = capsys.readouterr().out
    assert "graph: 3 classes, 3 to ask.\n3 calls, about " in printed
    assert "3 answers, 300 tokens in and 30 tokens out, which cost 0.00." in printed
    assert f"{clauses} is there already." in printed


def test_without_yes_nothing_is_asked(labels, monkeypatch, capsys):
    with chat_server(always(GOOD)) as chats:
        monkeypatch.setenv("OPENAI_BASE_URL", chats.url)
        flags = ["graph", "--labels", str(labels), "--output", str(labels.parent / "out.yaml")]
        assert main(flags) == 0
        assert "of unknown cost without --price_in and --price_out" in capsys.readouterr().out
        assert main([*flags, "--price_in", "1000", "--price_out", "1000", "--max_tokens", "500"]) == 0
    assert chats.asked == []
    assert sorted(path.name for path in labels.parent.iterdir()) == ["labels.json"]
    printed = capsys.readouterr().out
    calls, tokens_in, tokens_out = re.search(r"(\d+) calls, about ([\d,]+) tokens in and ([\d,]+)", printed).groups()
    total = int(tokens_in.replace(",", "")) + int(tokens_out.replace(",", ""))
    assert (calls, tokens_out) == ("3", "1,200")
    assert f"which cost {total / 1000:.2f}." in printed
    assert "9 calls" in printed
    assert "4,500 tokens out" in printed
    assert printed.endswith("Nothing was asked. Add --yes to ask.\n")


BAD = {
    "no YAML": "Certainly! Here: [",
    "prose": "I cannot help with that.",
    "a missing list": dump({name: GRAPH[name] for name in list(GRAPH)[:4]}),
    "an empty list": dump(GRAPH | {"sub_act_en_li": []}),
    "a malformed triple": dump(GRAPH | {"obj_rel_triples": ["<thumb, orange>"]}),
    "a triple as a list": dump(GRAPH | {"obj_rel_triples": [["a", "b", "c"]]}),
    "nothing": "",
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_answer_is_asked_again(ask, labels, bad):
    """With the answer and what is wrong with it, until it is good."""
    code, chats = ask(lambda body, number: Reply(BAD[bad]) if number in (1, 2) else GOOD)
    assert code == 0
    assert [class_in(body) for body in chats.asked] == ["PeelOrange", *["jump_rope"] * 3, "tai chi"]
    told = chats.asked[3]["messages"]
    assert [message["role"] for message in told][-1] == "user"
    assert "cannot be used: " in told[-1]["content"]
    assert (BAD[bad] in [message["content"] for message in told]) == bool(BAD[bad])
    assert len(read_graph(labels.parent / "out.yaml", NAMES)[1]) == 3


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"xprompt_ao": ["which uses a knife"]}, "xprompt_ao: has 1 clauses for 2 triples"),
        ({"xprompt_oo": ["when you Peel  Orange fast"]}, "repeats the name of the action"),
        ({"xprompt_oo": ["word " * 31]}, "has 31 words, more than 30"),
        ({"xprompt_oo": [{"a": "b"}]}, "xprompt_oo, item 1, is {'a': 'b'} and no text"),
    ],
)
def test_a_bad_clause(monkeypatch, graph, changes, told, capsys):
    """The class is named and the others are kept; another run asks for this class alone."""
    output = graph.parent / "clauses.yaml"
    flags = ["clauses", "--graph", str(graph), "--output", str(output), "--model", "stub", "--yes", "--attempts", "2"]

    def reply(body: Body, number: int) -> Reply:
        is_peel = "peel orange" in body["messages"][1]["content"]
        return Reply(dump(CLAUSES | changes if is_peel else CLAUSES))

    with chat_server(reply) as chats:
        monkeypatch.setenv("OPENAI_BASE_URL", chats.url)
        assert main(flags) == 1
    assert len(chats.asked) == 4
    errors = capsys.readouterr().err
    assert "PeelOrange: " in errors
    assert told in errors
    assert "1 classes have no good answer after 2 attempts (PeelOrange)" in errors
    assert not output.exists()
    with chat_server(always(Reply(dump(CLAUSES)))) as chats:
        monkeypatch.setenv("OPENAI_BASE_URL", chats.url)
        assert main(flags) == 0
    assert len(chats.asked) == 1
    assert list(yaml.safe_load(output.read_text())) == list(NAMES)


@pytest.mark.parametrize(
    "passing",
    [
        Reply(status=429, body='{"error": {"message": "slow down"}}'),
        Reply(status=500, body="<html>"),
        Reply(status=503, body="{}"),
        Reply(hang_up=True),
    ],
    ids=["429", "500", "503", "hang up"],
)
def test_what_passes_is_repeated(ask, passing):
    code, chats = ask(lambda body, number: passing if number == 1 else GOOD)
    assert code == 0
    assert [class_in(body) for body in chats.asked] == ["PeelOrange", "jump_rope", "jump_rope", "tai chi"]


@pytest.mark.parametrize(
    ("reply", "told", "calls"),
    [
        (Reply(status=429, body='{"error": {"message": "no quota"}}'), "fails, 2 times (Error code: 429", 2),
        (Reply(status=500, body="<html>"), "fails, 2 times", 2),
        (Reply(status=401, body=json.dumps({"error": {"message": f"bad key {KEY}"}})), "check OPENAI_API_KEY", 1),
        (Reply(status=404, body='{"error": {"message": "no model stub"}}'), "check --model", 1),
        (Reply(hang_up=True), "cannot be reached", 2),
        (Reply(wait=20), "gave no answer within 0.2 s, 2 times", 2),
    ],
    ids=["429", "500", "401", "404", "hang up", "slow"],
)
def test_an_endpoint_that_stays_out_of_order(ask, labels, reply, told, calls, capsys):
    """What came before stays, and the next run goes on."""
    (labels.parent / "out.yaml.partial").write_text(dump({"PeelOrange": GRAPH}))
    code, chats = ask(always(reply), "--retries", "1", *(("--timeout", "0.2") if reply.wait else ()))
    error = capsys.readouterr().err
    assert code == 2, error
    assert told in error
    assert len(chats.asked) == calls
    assert list(yaml.safe_load((labels.parent / "out.yaml.partial").read_text())) == ["PeelOrange"]
    code, chats = ask(always(GOOD))
    assert code == 0
    assert [class_in(body) for body in chats.asked] == ["jump_rope", "tai chi"]
    assert not (labels.parent / "out.yaml.partial").exists()


@pytest.mark.parametrize("other", [("--model", "other"), ("--temperature", "1")])
def test_answers_of_two_models_are_not_mixed(ask, labels, capsys, other):
    partial = labels.parent / "out.yaml.partial"
    code, _ = ask(lambda body, number: GOOD if number == 0 else Reply(status=401, body="{}"))
    assert code == 2
    kept = partial.read_text()
    assert kept.startswith("# Asked of stub at temperature 0 ")
    code, chats = ask(always(GOOD), *other)
    assert code == 2
    assert "pass the same --model and --temperature, or remove it" in capsys.readouterr().err
    assert not chats.asked
    assert partial.read_text() == kept
    assert ask(always(GOOD))[0] == 0


def test_no_endpoint_at_all(monkeypatch, labels, capsys):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    flags = ["graph", "--labels", str(labels), "--output", str(labels.parent / "o.yaml"), "--model", "m", "--yes"]
    assert main([*flags, "--retries", "0"]) == 2
    assert "127.0.0.1:9 cannot be reached" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (Reply(status=400, body='{"error": {"message": "against the rules"}}'), "against the rules"),
        (Reply(dump(GRAPH), finish="length"), "the answer was cut: raise --max_tokens"),
        (Reply(body="{}"), "no chat completion"),
        (Reply(body="<html>hello"), "no chat completion"),
        (Reply(body='{"choices": 1'), "no chat completion"),
        (Reply(dump(GRAPH | {"obj_en_li": [KEY]})), "the answer has the key in it"),
    ],
    ids=["refused", "cut", "empty", "html", "json", "key"],
)
def test_a_question_that_has_no_answer(ask, labels, reply, told, capsys):
    """It costs its attempts, and the other classes go on."""
    code, chats = ask(lambda body, number: reply if class_in(body) == "jump_rope" else GOOD, "--attempts", "2")
    assert code == 1
    assert [class_in(body) for body in chats.asked] == ["PeelOrange", "jump_rope", "jump_rope", "tai chi"]
    assert told in capsys.readouterr().err
    assert list(yaml.safe_load((labels.parent / "out.yaml.partial").read_text())) == ["PeelOrange", "tai chi"]


def test_a_model_that_never_answers_well_is_given_up(ask, labels, capsys):
    labels.write_text(json.dumps({str(number): f"class {number}" for number in range(50)}))
    code, chats = ask(always(Reply("I cannot help with that.")), "--attempts", "1")
    assert code == 2
    assert len(chats.asked) < 8
    assert "the first 5 classes have no good answer (as class 0: " in capsys.readouterr().err


def test_a_partial_file_is_checked(ask, labels, capsys):
    """A faulty answer in it is asked for again; the answers of other classes are refused."""
    partial = labels.parent / "out.yaml.partial"
    faulty = GRAPH | {"obj_rel_triples": ["<thumb, orange>"]}
    partial.write_text(dump({"tai chi": GRAPH, "jump_rope": faulty}))
    code, chats = ask(always(GOOD))
    assert code == 0
    assert [class_in(body) for body in chats.asked] == ["PeelOrange", "jump_rope"]
    assert "the answer for jump_rope is not used" in capsys.readouterr().out
    (labels.parent / "out.yaml").unlink()
    partial.write_text(dump({"surf": GRAPH}))
    code, chats = ask(always(GOOD))
    assert (code, chats.asked) == (2, [])
    assert "answers of other classes" in capsys.readouterr().err


def test_the_key_goes_to_the_endpoint_and_nowhere_else(ask, labels, caplog, capsys):
    """Not into logs of any level, messages, or files, even if the server sends it back everywhere."""
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx", "httpcore", "httpx2", "httpcore2"):
        caplog.set_level(logging.DEBUG, name)
    echo = json.dumps({"error": {"message": f"the key {KEY} is overloaded"}})
    replies = [
        Reply(status=500, body=echo), Reply(f"- {KEY}: [", finish="stop"), Reply(status=400, body=echo), GOOD,
        Reply(status=401, body=echo),
    ]  # fmt: skip
    code, chats = ask(lambda body, number: replies[min(number, 4)])
    assert code == 2
    assert chats.headers[0]["authorization"] == f"Bearer {KEY}"
    printed = capsys.readouterr()
    assert "the key (key) is overloaded" in printed.err
    assert caplog.records
    written = [path.read_text() for path in labels.parent.iterdir()]
    for text in (printed.out, printed.err, caplog.text, *written, *(json.dumps(body) for body in chats.asked)):
        assert KEY not in text


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"OPENAI_API_KEY": ""}, "OPENAI_API_KEY is not set"),
        ({"OPENAI_API_KEY": f"{KEY} x"}, "characters that no key has"),
        ({"OPENAI_API_KEY": f"{KEY}é"}, "characters that no key has"),
        ({"OPENAI_BASE_URL": "127.0.0.1:8000"}, "OPENAI_BASE_URL is no URL"),
        ({"OPENAI_BASE_URL": "http://127.0.0.1:port"}, "OPENAI_BASE_URL is no URL"),
        ({"OPENAI_BASE_URL": f"http://me:{KEY}@127.0.0.1/v1"}, "leave only the address"),
        ({"OPENAI_BASE_URL": f"http://127.0.0.1/v1?key={KEY}"}, "leave only the address"),
        ({"OPENAI_BASE_URL": f"http://127.0.0.1/{KEY}"}, "leave only the address"),
    ],
)
def test_mistakes_in_the_environment(monkeypatch, labels, variables, told, capsys):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    output = str(labels.parent / "out.yaml")
    assert main(["graph", "--labels", str(labels), "--output", output, "--model", "m", "--yes"]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert KEY not in error


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "no stage is given"),
        (["texts"], "invalid choice"),
        (["graph"], "--output is not given"),
        (["graph", "--output", "out.txt"], "ends in .yaml or .yml"),
        (["graph", "--output", "out.yaml"], "graph takes --labels"),
        (["clauses", "--output", "out.yaml"], "clauses needs --graph"),
        (["clauses", "--output", "out.yaml", "--graph", "none.yaml"], "--graph none.yaml is not a file"),
        (["graph", "--output", "out.yaml", "--labels", "none.csv"], "--labels none.csv is not a file"),
        (["graph", "--output", "out.yaml", "--yes"], "--model is not given"),
        (["graph", "--output", "out.yaml", "--attempts", "0"], "--attempts 0 is out of range"),
        (["graph", "--output", "out.yaml", "--timeout", "0"], "--timeout 0 is out of range"),
        (["graph", "--output", "out.yaml", "--temperature", "3"], "--temperature 3 is out of range"),
        (["graph", "--output", "out.yaml", "--price_in", "-1"], "--price_in -1 is out of range"),
        (["graph", "--output", "out.yaml", "--timeout", "nan"], "--timeout"),
        (["graph", "--output", "out.yaml", "--key", KEY], "unknown argument '--key'"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, flags, told, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert told in error
    assert KEY not in error
    assert list(tmp_path.iterdir()) == []


def test_another_output_is_refused(graph, labels, capsys):
    flags = ["graph", "--labels", str(labels), "--output", str(graph)]
    assert main(flags) == 0
    assert "is there already" in capsys.readouterr().out
    graph.write_text(dump({"surf": GRAPH}))
    assert main(flags) == 2
    assert f"--output {graph} has 1 classes and the data set 3" in capsys.readouterr().err
