"""The page in a real browser, asked over a real server: what people see, hear of and can do with a keyboard alone."""

import csv
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from main_task_retrieval import main as train
from preprocess.make_moving_shapes import main as make_world
from preprocess.moving_shapes.files import write_video
from search.__main__ import main as search
from tests.search.page.browser import HOSTILE, Watched, find_chromium, frames_of, serving

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")
CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium"),
]
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    """A folder with a long film of eight made clips, single clips, one of a hostile name and one in MPEG-4's old codec."""
    world = tmp_path_factory.mktemp("page") / "world"
    assert make_world(["--output_dir", str(world), "--train_pairs", "4", "--test_pairs", "8", "--image_size", "64"]) == 0
    with open(world / "MSRVTT_JSFUSION_test.csv") as file:
        clips = [world / "videos" / f"{row['video_id']}.mp4" for row in csv.DictReader(file)]
    folder = world.parent / "films"
    (folder / "below").mkdir(parents=True)
    write_video(folder / "long.mp4", np.concatenate([frames_of(clip) for clip in clips[:8]]))
    shutil.copy(clips[8], folder / HOSTILE)
    for clip in clips[9:14]:
        shutil.copy(clip, folder / "below")
    with av.open(str(folder / "old.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=3)
        stream.width = stream.height = 64
        for frame in frames_of(clips[14]):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return folder


@pytest.fixture(scope="module")
def address(films, small_data) -> Iterator[str]:
    world = films.parent / "world"
    run, index = films.parent / "run", films.parent / "index"
    flags = ["--train_csv", world / "MSRVTT_train.csv", "--val_csv", world / "MSRVTT_JSFUSION_test.csv"]
    flags += ["--data_path", world / "MSRVTT_data.json", "--features_path", world / "videos"]
    flags += ["--pretrained_clip_name", small_data.clip, "--output_dir", run, "--precision", "fp32"]
    flags += "--method stop --epochs 1 --batch_size 8 --max_frames 6 --max_words 12 --lr 0.01".split()
    flags += "--feature_framerate 0 --frame_sampling segment --num_thread_reader 0".split()
    assert train(["--do_train", *map(str, flags)]) == 0
    windows = ["--window", "4", "--stride", "2", "--jobs", "1"]
    assert search(["index", str(films), "--index", str(index), "--checkpoint", f"{run}/last.safetensors", *windows]) == 0
    with serving(index) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def watch(browser, address) -> Iterator[Callable[..., Watched]]:
    """Open pages in browsers with settings; at the end, none may have asked another host or have had trouble."""
    contexts, pages = [], []

    def open_page(**settings: Any) -> Watched:
        contexts.append(browser.new_context(**settings))
        contexts[-1].set_default_timeout(30_000)
        pages.append(Watched(contexts[-1].new_page(), address))
        return pages[-1]

    yield open_page
    for context in contexts:
        context.close()
    for watched in pages:
        assert watched.hosts() <= {address.removeprefix("http://")}
        assert watched.trouble == []


FIRST = "document.querySelector('#results video')"
LARGE = "document.querySelector('#stage video')"


def moment_of(page: Any, card: int = 0) -> tuple[float, float]:
    """Return start and end of a hit, from what its card says."""
    times = page.locator("#results .time").nth(card).inner_text()
    start, end = (float(minutes) * 60 + float(seconds) for minutes, seconds in re.findall(r"(\d+):([\d.]+)", times))
    return start, end


def focused(page: Any) -> str:
    return page.evaluate("document.activeElement.id || document.activeElement.closest('li')?.id || ''")


def test_it_plays_the_moments_of_a_query(watch):
    watched = watch()
    page = watched.open()
    assert page.evaluate("document.activeElement === document.body")
    assert "windows of 4 s every 2 s, model stop" in page.inner_text("#facts")
    watched.search("a red square moves to the left")
    count = page.locator("#results li").count()
    assert page.inner_text("#status").startswith(f"{count} moments in ")
    watched.until(f"{FIRST}.readyState > 2 && !{FIRST}.paused")
    videos = page.evaluate("[...document.querySelectorAll('#results video')].map(v => [v.muted, v.currentTime, v.inView])")
    assert all(muted for muted, _, _ in videos)
    long = [n for n in range(count) if page.locator("#results .name").nth(n).inner_text() == "long.mp4"]
    assert any(moment_of(page, n)[0] > 3 for n in long), "no moment in the middle of the long film was found"
    for n in long:
        page.locator("#results li").nth(n).scroll_into_view_if_needed()
        start, end = moment_of(page, n)
        video = f"document.querySelectorAll('#results video')[{n}]"
        watched.until(f"{video}.classList.contains('ready') && !{video}.paused")
        assert start <= page.evaluate(f"{video}.currentTime") <= end + 0.3
    # Near its end, a moment begins again.
    video = f"document.querySelectorAll('#results video')[{long[0]}]"
    start, end = moment_of(page, long[0])
    page.evaluate(f"{video}.currentTime = {end - 0.3}")
    watched.until(f"{video}.currentTime < {start + 1.5} && {video}.currentTime >= {start}")


def test_clips_out_of_view_rest(watch):
    watched = watch(viewport={"width": 500, "height": 400})
    page = watched.open()
    watched.search("a blue disc")
    watched.until(f"!{FIRST}.paused")
    last = "[...document.querySelectorAll('#results video')].at(-1)"
    assert page.evaluate(f"{last}.paused && !{last}.src")
    page.locator("#results li").last.scroll_into_view_if_needed()
    watched.until(f"!{last}.paused && {FIRST}.paused")
    page.click("#motion")
    watched.until("[...document.querySelectorAll('#results video')].every(video => video.paused)")
    assert page.inner_text("#motion") == "Play clips"


def test_regions_and_prompts_are_drawn_over_the_clip(watch):
    watched = watch()
    page = watched.open("/?q=a+green+heart")
    watched.wait_for_hits()
    with page.expect_response("**/maps/*") as waited:
        page.locator("#results .open").first.click()
    maps = waited.value.json()
    assert len(maps["times"]) == 6
    page.wait_for_selector("#bars .bar", state="attached")
    watched.until(f"{LARGE}.readyState > 2")
    page.click("#play")
    for layer in range(len(maps["layers"])):
        page.select_option("#layer", str(layer))
        counts = page.locator("#bars text").all_text_contents()
        assert counts == [str(count) for count in maps["layers"][layer]["prompts"]]
        for frame, time in enumerate(maps["times"]):
            regions = maps["layers"][layer]["regions"][frame]
            page.evaluate(f"{LARGE}.currentTime = {time}")
            watched.until(f"document.querySelectorAll('#regions rect').length === {len(regions)}")
            watched.until(f"!{LARGE}.seeking")
            page.wait_for_timeout(50)
            side = 64 / maps["grid"][0]  # the films are 64 pixels wide, and the model sees all of them
            drawn = page.evaluate("[...document.querySelectorAll('#regions rect')].map(r => [+r.getAttribute('x'), +r.getAttribute('y')])")
            expected = [[cell % maps["grid"][1] * side, cell // maps["grid"][1] * side] for cell in regions]
            assert np.allclose(drawn, expected)
    picture, video = (page.locator(name).bounding_box() for name in ("#regions", "#stage video"))
    assert picture == video
    page.uncheck("#draw")
    assert not page.is_visible("#regions")
    assert not page.is_visible("#bars")


def test_the_time_line_seeks(watch):
    watched = watch()
    page = watched.open("/?q=a+green+heart&in=long.mp4&per_file=1")
    watched.wait_for_hits()
    start, end = moment_of(page)
    page.locator("#results .open").click()
    watched.until(f"{LARGE}.readyState > 2 && !{LARGE}.paused")
    assert start <= page.evaluate(f"{LARGE}.currentTime") <= end + 0.3
    assert float(page.get_attribute("#seek", "max")) == pytest.approx(32, abs=0.1)
    mark = page.locator("#marks .this")
    assert float(mark.get_attribute("x")[:-1]) == pytest.approx(100 * start / 32, abs=0.5)
    assert float(mark.get_attribute("width")[:-1]) == pytest.approx(100 * (end - start) / 32, abs=0.5)
    away = 1 if start > 4 else 30
    page.fill("#seek", str(away))  # leaving the moment ends its repetition
    watched.until(f"Math.abs({LARGE}.currentTime - {away}) < 1")
    assert not page.is_checked("#loop")


def test_a_keyboard_is_enough(watch):
    watched = watch()
    page = watched.open()
    keyboard = page.keyboard
    keyboard.press("/")
    assert focused(page) == "q"
    keyboard.type("a red square")
    keyboard.press("Enter")
    watched.wait_for_hits()
    cards = page.locator("#results li").evaluate_all("cards => cards.map(card => card.id)")
    for _ in range(10):
        keyboard.press("Tab")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
        assert float(outline.removesuffix("px")) >= 2, focused(page)
        if focused(page) == cards[0]:
            break
    assert focused(page) == cards[0]
    columns = page.evaluate("getComputedStyle(document.getElementById('results')).gridTemplateColumns.split(' ').length")
    keyboard.press("ArrowRight")
    assert focused(page) == cards[1]
    if len(cards) > columns:
        keyboard.press("ArrowLeft")
        keyboard.press("ArrowDown")
        assert focused(page) == cards[columns]
        keyboard.press("ArrowUp")
        keyboard.press("ArrowRight")
    keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "More like this"
    keyboard.press("Shift+Tab")
    keyboard.press("Enter")
    page.wait_for_selector("#player[open]")
    keyboard.press("ArrowRight")
    watched.until(f"new URL(location).searchParams.get('hit') === '{cards[2].removeprefix('hit-')}'")
    reached = set()
    for _ in range(14):
        keyboard.press("Tab")
        reached.add(focused(page))
    assert {"close", "play", "loop", "draw", "layer", "seek", "previous", "like", "copy"} <= reached
    keyboard.press("Escape")
    page.wait_for_selector("#player", state="hidden")
    assert focused(page) == cards[2]
    assert page.url.endswith("?q=a+red+square")
    keyboard.press("Tab")
    keyboard.press("Enter")
    page.wait_for_url(f"**/?like={cards[2].removeprefix('hit-').replace(':', '%3A')}")
    watched.wait_for_hits()
    watched.until("document.activeElement.closest('li')")
    assert focused(page) == cards[2], "a moment is most like itself, and the focus goes to the first hit"


def test_with_reduced_motion_nothing_plays_unasked(watch):
    watched = watch(reduced_motion="reduce")
    page = watched.open("/?q=a+red+square")
    watched.wait_for_hits()
    watched.until("[...document.querySelectorAll('#results img')].slice(0, 3).every(image => image.naturalWidth)")
    page.wait_for_timeout(500)
    assert watched.paths("video") == []
    assert page.inner_text("#motion") == "Play clips"
    page.locator("#results .play").first.click()
    watched.until(f"!{FIRST}.paused && {FIRST}.currentTime > 0")
    assert len(set(watched.paths("video"))) == 1
    page.locator("#results .play").first.click()
    watched.until(f"{FIRST}.paused")
    page.locator("#results .open").first.click()
    assert page.inner_text("#play") == "Play"
    page.click("#play")
    watched.until(f"!{LARGE}.paused")


def test_names_of_files_stay_text(watch):
    watched = watch()
    page = watched.open("/?" + "q=a+red+square&in=*onerror*")
    watched.wait_for_hits()
    assert page.locator("#results .name").first.inner_text() == HOSTILE
    page.locator("#results .open").first.click()
    assert page.inner_text("#name") == HOSTILE
    assert page.locator("img[src=x]").count() == 0
    page.goto(watched.address + "/?q=" + "%3Cimg src=x onerror=alert(2)%3E&and=1:%3Cb%3E&hit=%3Cimg src=x%3E")
    watched.wait_for_hits()
    watched.until("document.getElementById('error').textContent")
    assert page.locator("img[src=x]").count() == 0
    watched.forgive()


def test_the_address_keeps_the_query(watch):
    watched = watch(permissions=["clipboard-read", "clipboard-write"])
    page = watched.open()
    page.click("#refine summary")
    page.click("[data-add=without]")
    page.keyboard.type("a yellow heart")
    page.fill("#parts input[type=number]", "0.4")
    page.click("[data-add=in]")
    page.keyboard.type("below/*")
    page.fill("[name=top]", "4")
    watched.search("a white square hops")
    query = "?q=a+white+square+hops&top=4&without=0.4%3Aa+yellow+heart&in=below%2F*"
    assert page.url == f"{watched.address}/{query}"
    names = page.locator("#results .name").all_inner_texts()
    ids = page.locator("#results li").evaluate_all("cards => cards.map(card => card.id)")
    assert names
    assert page.title() == "a white square hops – Search your videos"
    page.reload()
    watched.wait_for_hits()
    assert page.locator("#results li").evaluate_all("cards => cards.map(card => card.id)") == ids
    assert page.input_value("#parts .words >> nth=0") == "a yellow heart"
    assert page.input_value("#parts input[type=number]") == "0.4"
    page.fill("#q", "a disc")
    page.press("#q", "Enter")
    page.wait_for_url("**/?q=a+disc*")
    watched.wait_for_hits()
    page.go_back()
    watched.until(f"location.search === '{query}'")
    assert page.input_value("#q") == "a white square hops"
    page.go_forward()
    watched.until("document.getElementById('q').value === 'a disc'")
    page.go_back()
    watched.until("document.getElementById('q').value === 'a white square hops'")
    watched.wait_for_hits()
    page.locator("#results .open").nth(1).click()
    page.click("#copy")
    watched.until("document.getElementById('copied').textContent === 'Copied.'")
    link = page.evaluate("navigator.clipboard.readText()")
    page.go_back()
    page.wait_for_selector("#player", state="hidden")
    other = watch()
    other.open(link.removeprefix(watched.address))
    other.page.wait_for_selector("#player[open]")
    assert other.page.locator("#results li").evaluate_all("cards => cards.map(card => card.id)") == ids
    assert f"{ids[1].removeprefix('hit-')}" in other.page.inner_text("#details")
    other.page.click("#close")
    other.until(f"location.search === '{query}'")


def test_a_clip_and_a_picture_can_be_looked_for(watch, films, tmp_path):
    watched = watch()
    page = watched.open()
    clip = next((films / "below").iterdir())
    page.set_input_files("#file", clip)
    watched.wait_for_hits()
    assert page.locator("#results .name").first.inner_text() == clip.name
    assert page.locator("#results .score").first.inner_text() == "1.000"
    assert clip.name in page.inner_text("#sought")
    watched.until("document.querySelector('#sought video').videoWidth === 64")
    page.locator("#results .open").first.click()
    page.wait_for_selector("#player[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("#player", state="hidden")
    # Dropped on the page: a picture.
    pixels = frames_of(clip)[0]
    with av.open(str(tmp_path / "still.png"), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
    dropped = page.evaluate_handle(
        """bytes => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([Uint8Array.from(bytes)], "still.png", { type: "image/png" }));
            return transfer;
        }""",
        list((tmp_path / "still.png").read_bytes()),
    )
    page.dispatch_event("body", "dragover", {"dataTransfer": dropped})
    assert page.is_visible("#drop")
    with page.expect_response("**/api/upload*") as waited:
        page.dispatch_event("body", "drop", {"dataTransfer": dropped})
    assert waited.value.status == 200
    assert not page.is_visible("#drop")
    watched.until("/^Nothing moves in a picture/.test(document.getElementById('fit').textContent)")
    page.wait_for_selector("#sought canvas")
    assert "still.png" in page.inner_text("#sought")
    page.go_back()  # to the clip, which the page still has
    watched.until(f"document.getElementById('sought').textContent.includes('{clip.name}')")
    watched.wait_for_hits()
    assert page.locator("#results .name").first.inner_text() == clip.name
    page.reload()
    watched.until("document.getElementById('error').textContent")
    assert page.inner_text("#error") == f"The page no longer has {clip.name}: choose or drop it again."


def test_what_the_browser_cannot_play_comes_as_h264(watch):
    watched = watch()
    page = watched.open("/?q=a+red+square&in=*.avi")
    watched.wait_for_hits()
    watched.until(f"{FIRST}.classList.contains('ready') && !{FIRST}.paused && {FIRST}.currentTime > 0")
    assert page.evaluate(f"new URL({FIRST}.src).pathname").startswith("/clip/")


def test_mistakes_are_told_in_sentences(watch):
    watched = watch()
    page = watched.open("/?without=1:a+square")
    watched.until("document.getElementById('error').textContent")
    assert page.inner_text("#error").startswith("The query is empty")
    page.goto(watched.address + "/?q=a+square&hit=77777:0")
    watched.until("/no longer|no window/.test(document.getElementById('error').textContent)")
    page.context.set_offline(True)
    page.fill("#q", "a disc")
    page.press("#q", "Enter")
    watched.until("/does not answer/.test(document.getElementById('error').textContent)")
    assert page.locator("#results li").count() == 0
    page.context.set_offline(False)
    watched.forgive()


def test_it_says_what_a_model_or_a_result_cannot_do(watch):
    watched = watch()
    watched.answer("/api/index", lambda body: body.update(untrained=True, note=""))
    watched.answer("/api/query", lambda body: body.update(fits_well=False, note=""))
    page = watched.open()
    assert "cannot tell left from right" in page.inner_text("#model-note")
    watched.search("a tax return")
    assert page.inner_text("#fit") == "Nothing fits well; these are the nearest moments."


def test_a_phone_need_not_scroll_sideways(watch, films):
    watched = watch(viewport=PHONE, has_touch=True)
    page = watched.open()

    def fits(element: str = "document.documentElement") -> bool:
        return page.evaluate(f"{element}.scrollWidth <= {element}.clientWidth && {element}.clientWidth <= {PHONE['width']}")

    assert fits()
    page.click("#refine summary")
    for kind in ("and", "without", "in"):
        page.click(f"[data-add={kind}]")
    assert fits()
    watched.search("a square " + "pneumonoultramicroscopicsilicovolcanoconiosis" * 5)
    assert fits()
    assert page.evaluate("getComputedStyle(document.getElementById('results')).gridTemplateColumns.split(' ').length") == 2
    page.locator("#results .open").first.click()
    page.wait_for_selector("#bars .bar", state="attached")
    assert fits()
    assert fits("document.getElementById('player')")


CONTRASTS = """() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const over = (top, under) => {
    const alpha = top[3] ?? 1;
    return [0, 1, 2].map((i) => top[i] * alpha + under[i] * (1 - alpha));
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => ((v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    if (!element) return [255, 255, 255];
    const own = parse(getComputedStyle(element).backgroundColor);
    return (own[3] ?? 1) === 1 ? own : over(own, ground(element.parentElement));
  };
  const ratio = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const found = [];
  const dialog = document.querySelector("dialog[open]");
  for (const element of (dialog ?? document.body).querySelectorAll("*")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const field = element.matches("input:not([type=checkbox], [type=range]), select, button");
    if (!element.checkVisibility() || !(own || field) || element.disabled) continue;
    const style = getComputedStyle(element);
    const under = ground(element);
    const colour = element.namespaceURI.endsWith("svg") ? style.fill : style.color;
    found.push([element.id || element.className || element.tagName, ratio(over(parse(colour), under), under), 4.5]);
    if (field && parse(style.borderTopColor)[3] !== 0 && !element.matches(".actions *, .open, .main"))
      found.push([`border of ${element.id || element.name}`, ratio(parse(style.borderTopColor), ground(element.parentElement)), 3]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrasts(watch, scheme):
    watched = watch(color_scheme=scheme)
    watched.answer("/api/index", lambda body: body.update(untrained=True))
    watched.answer("/api/query", lambda body: body.update(fits_well=False))
    page = watched.open("/?q=a+red+square&and=1:a+disc&in=*")
    watched.wait_for_hits()
    measured = page.evaluate(CONTRASTS)
    assert len(measured) > 30
    page.locator("#results .open").first.click()
    page.wait_for_selector("#bars .bar", state="attached")
    inside = page.evaluate(CONTRASTS)
    assert len(inside) > 15
    weak = [(name, round(ratio, 2)) for name, ratio, least in [*measured, *inside] if ratio < least]
    assert weak == []


NAMELESS = """() => [...document.querySelectorAll("button, input, select, summary, dialog, [role]")].filter((element) => {
  const by = element.getAttribute("aria-labelledby");
  const label = [...(element.labels ?? [])].map((one) => one.textContent).join("");
  const text = element.matches("input, select, dialog") ? "" : element.textContent;
  const live = element.matches("[role=status], [role=alert], [role=search]");
  return !live && !(element.ariaLabel || label || text || (by && document.getElementById(by)?.textContent) || "").trim();
}).map((element) => element.outerHTML)"""


def test_everything_has_a_name(watch):
    watched = watch()
    page = watched.open("/?q=a+red+square&and=1:a+disc&without=1:a+heart&in=*")
    watched.wait_for_hits()
    page.locator("#results .open").first.click()
    page.wait_for_selector("#bars .bar", state="attached")
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate("document.querySelectorAll('img:not([alt])').length") == 0
    doubled = "[...document.querySelectorAll('[id]')].map(e => e.id).filter((id, n, all) => all.indexOf(id) !== n)"
    assert page.evaluate(doubled) == []
    assert page.get_attribute("html", "lang") == "en"
