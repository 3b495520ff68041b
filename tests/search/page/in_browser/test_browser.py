"""The page in a real browser, asked over a real server: what people ask, see and can go back to."""

import av
import numpy as np
import pytest

from tests.search.page.in_browser.watched import FIRST, HOSTILE, LARGE, moment_of
from tools.search_picture import frames_of

pytestmark = pytest.mark.slow


def test_it_plays_the_moments_of_a_query(watch):
    watched = watch()
    page = watched.open()
    assert page.evaluate("document.activeElement === document.body")
    assert "windows of 4 s every 2 s, model stop" in page.inner_text("#facts")
    watched.search("a red square moves to the left")
    count = page.locator("#results li").count()
    assert page.inner_text("#status").startswith(f"{count} moments in ")
    watched.until(f"{FIRST}.readyState > 2 && !{FIRST}.paused")
    videos = page.evaluate(
        "[...document.querySelectorAll('#results video')].map(v => [v.muted, v.currentTime, v.inView])"
    )
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
        page.select_option("#layer", index=layer)
        counts = page.locator("#bars text").all_text_contents()
        assert counts == [str(count) for count in maps["layers"][layer]["prompts"]]
        for frame, time in enumerate(maps["times"]):
            regions = maps["layers"][layer]["regions"][frame]
            page.evaluate(f"{LARGE}.currentTime = {time}")
            watched.until(f"document.querySelectorAll('#regions rect').length === {len(regions)}")
            watched.until(f"!{LARGE}.seeking")
            page.wait_for_timeout(50)
            side = 64 / maps["grid"][0]  # the films are 64 pixels wide, and the model sees all of them
            drawn = page.evaluate(
                "[...document.querySelectorAll('#regions rect')].map(r => [+r.getAttribute('x'), +r.getAttribute('y')])"
            )
            expected = [[cell % maps["grid"][1] * side, cell // maps["grid"][1] * side] for cell in regions]
            assert np.allclose(drawn, expected)
    picture, video = (page.locator(name).bounding_box() for name in ("#regions", "#stage video"))
    assert picture == video
    page.check("#sound")
    assert not page.evaluate(f"{LARGE}.muted")
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


def test_the_name_of_a_broken_upload_stays_as_it_is(watch, tmp_path):
    watched = watch()
    page = watched.open()
    (tmp_path / "text.mp4").write_text("no video")
    page.set_input_files("#file", tmp_path / "text.mp4")
    page.wait_for_selector("#error:not(:empty)")
    assert page.inner_text("#error").startswith("text.mp4 is not a video")
    watched.forgive()


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
