# ruff: noqa: E402  (imports come after the skip)
"""The server follows an index that other processes write to, while many ask."""

import shutil
import threading

import numpy as np
import pytest

from tests.search.page.browser import skip_without_page

skip_without_page()

from search.__main__ import main
from search.index import Index
from search.page.live import LiveIndex
from search.store import PER_FILE, Content, Store
from tests.search.page.conftest import browsing, picture
from tests.videos import write_video


@pytest.fixture
def live(own_site):
    with LiveIndex.open(own_site.index) as index:
        index.load()
        yield index


def found(index: Index) -> dict[int, tuple[float, float]]:
    """Return score and `above` of every window by its id."""
    hits = index.query("red", top=100_000, per_file=100_000)
    return {hit.window_id: (hit.score, hit.above) for hit in hits}


def assert_fresh(live: LiveIndex) -> None:
    """Check that an index gives what one that was opened now does."""
    with Index.open(live.store.folder) as fresh:
        expected, got = found(fresh), found(live)
    assert got.keys() == expected.keys()
    for id_, values in expected.items():
        assert got[id_] == pytest.approx(values, abs=2e-3)
    ids = live.store.ids(live.model)
    assert live.engine.count == len(ids) == live.count
    assert sorted(live._gallery_ids.tolist()) == ids.tolist()


def rows(count: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((count, 24))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float16)


def put(store: Store, model, number: int, count: int = 3) -> None:
    starts = [2.0 * place for place in range(count)]
    content = Content(f"/made/{number}.mp4", 1, 1, f"{number:064x}", 2.0 * count)
    store.put(content, model, starts, [start + 2 for start in starts], rows(count, number))


def test_it_begins_as_an_index_does(live):
    assert_fresh(live)
    with Index.open(live.store.folder) as fresh:
        hits = fresh.query("red")
        assert live.fits_well(hits) is fresh.fits_well(hits)


def test_files_that_come_change_and_go(live, own_site):
    with Store(own_site.index, write=True) as writer:
        (model,) = writer.models()
        for number in range(3):
            put(writer, model, number)
        assert_fresh(live)
        put(writer, model, 1, 5)  # under a new id
        writer.remove([file for file in writer.files() if file.path == "/made/2.mp4"])
        put(writer, model, 7)
        assert_fresh(live)
        writer.remove(writer.files())
        assert live.query("red") == []
        put(writer, model, 8)
        assert_fresh(live)
        writer.remove_model(model)
        assert live.query("red") == []


def test_it_looks_only_if_somebody_has_written(live, own_site, monkeypatch):
    live.query("red")
    monkeypatch.setattr(Store, "counts", lambda *_: pytest.fail("listed"))
    live.query("red")
    with Store(own_site.index, write=True) as writer:
        put(writer, writer.models()[0], 1)
    with pytest.raises(pytest.fail.Exception, match="listed"):
        live.query("red")


def test_many_files_are_not_listed_all_the_time(live, own_site, monkeypatch):
    monkeypatch.setattr("search.page.live.MANY", 2)
    monkeypatch.setattr("search.page.live.PAUSE", 1e6)
    with Store(own_site.index, write=True) as writer:
        put(writer, writer.models()[0], 1)
        before = live.count
        live.query("red")
        assert live.count == before + 3
        put(writer, writer.models()[0], 2)
        live.query("red")
        assert live.count == before + 3
    monkeypatch.setattr(live, "_next_update", 0.0)
    live.query("red")
    assert live.count == before + 6


def test_a_hit_that_is_removed_while_it_is_looked_up(live, own_site):
    windows, removed = live.windows, []

    def remove_first(ids):
        if not removed:
            removed.append(int(ids[0]) // PER_FILE)
            with Store(own_site.index, write=True) as writer:
                writer.remove([writer.file(removed[0])])
        return windows(ids)

    live.windows = remove_first
    hits = live.query("red", per_file=100)
    assert hits
    assert removed[0] not in {hit.window_id // PER_FILE for hit in hits}


def test_another_index_in_its_place(live, own_site):
    shutil.rmtree(own_site.index)
    with pytest.raises(OSError, match="start the server again"):
        live.query("red")
    with Store(own_site.index, write=True):
        pass
    with pytest.raises(OSError, match="start the server again"):
        live.query("red")


def test_the_gallery_stays_a_sample(live, own_site, monkeypatch):
    monkeypatch.setattr("search.page.live.SAMPLED", 50)
    with Store(own_site.index, write=True) as writer:
        for number in range(20):
            put(writer, writer.models()[0], number, 50)
    live.query("red")
    assert live.engine.count > 1000
    assert 40 < len(live._gallery_ids) == len(live.gallery) < 80


def test_queries_while_files_come_and_go(live, own_site):
    ended, errors, answers = threading.Event(), [], []

    def ask():
        while not ended.is_set():
            try:
                answers.append(len(live.query("red")))
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    with Store(own_site.index, write=True) as writer:
        for number in range(40):
            put(writer, writer.models()[0], number)
            if number % 3 == 2:
                writer.remove([file for file in writer.files() if file.path == f"/made/{number - 1}.mp4"])
    ended.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert answers
    assert_fresh(live)


def test_texts_of_several_users_are_encoded_together(live, monkeypatch):
    texts = [f"film {number}" for number in range(6)]
    alone = {text: live.encode_text([text]) for text in texts}
    encode, batches, got, errors = type(live.encoder).encode_text, [], {}, []

    def noted(encoder, asked):
        batches.append(list(asked))
        return encode(encoder, asked)

    def ask(text):
        try:
            got[text] = live.encode_text([text])
        except ValueError as error:
            errors.append(str(error))

    monkeypatch.setattr(type(live.encoder), "encode_text", noted)
    threads = [threading.Thread(target=ask, args=(text,)) for text in (*texts, " ")]
    busy = threading.Event()
    live._encoding.submit(busy.wait)  # all must wait, and then go together
    for thread in threads:
        thread.start()
    while len(live._texts._waiting) < len(threads):
        threading.Event().wait(0.01)
    busy.set()
    for thread in threads:
        thread.join()
    assert sorted(batches[0]) == sorted([*texts, " "])
    assert len(errors) == 1
    assert "no words" in errors[0]
    for text in texts:
        np.testing.assert_allclose(got[text], alone[text], atol=1e-5)
    live.encode_text(["film 1"])
    assert batches[-1] == ["film 1"]


def test_the_page_shows_what_was_indexed_meanwhile(own_site):
    with browsing(own_site) as browser:
        before = browser.get("/api/index").json()["windows"]
        write_video(own_site.videos / "new.mp4", np.stack([picture(place) for place in range(6)]), fps=3)
        assert main(["refresh", "--index", str(own_site.index), "--jobs", "1"]) == 0
        assert browser.get("/api/index").json()["windows"] == before + 1
        answer = browser.post("/api/query", json={"text": "red", "in": ["new.mp4"]}).json()
        assert [hit["file"] for hit in answer["hits"]] == ["new.mp4"]
        own_site.index.rename(own_site.index.with_name("elsewhere"))
        answer = browser.post("/api/query", json={"text": "red"})
        assert (answer.status_code, list(answer.json())) == (503, ["error"])


def test_models_side_by_side(own_site, small_data, trained):
    """A model that the server did not begin with is loaded when it is first asked."""
    flags = ["--index", str(own_site.index), "--jobs", "1", "--window", "1", "--stride", "1"]
    assert main(["index", str(own_site.videos), "--checkpoint", str(trained.checkpoint), *flags]) == 0
    with browsing(own_site) as browser:
        assert browser.get("/api/index").json()["models"] == ["clip", "vpt"]
        other = browser.get("/api/index?model=vpt").json()
        assert (other["model"], other["window"], other["untrained"]) == ("vpt", 1, False)
        hits = {
            model: browser.post("/api/query", json={"text": "red", "model": model}).json()["hits"]
            for model in ("clip", "vpt")
        }
        lengths = {model: {hit["end"] - hit["start"] for hit in found} for model, found in hits.items()}
        assert lengths == {"clip": {2.0}, "vpt": {1.0}}
        last = hits["vpt"][0]["id"]
        assert browser.get(f"/thumb/{last}?model=vpt").status_code == 200
        answer = browser.get("/video/1:0?model=nix")
        assert (answer.status_code, list(answer.json())) == (400, ["error"])
