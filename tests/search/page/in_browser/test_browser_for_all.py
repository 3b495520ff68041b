"""The page in a real browser without a mouse, on a phone, for weak eyes, and for people whom motion disturbs."""

import pytest

from tests.search.page.in_browser.watched import FIRST, LARGE, focused

pytestmark = pytest.mark.slow
PHONE = {"width": 360, "height": 740}


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
    columns = page.evaluate(
        "getComputedStyle(document.getElementById('results')).gridTemplateColumns.split(' ').length"
    )
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
    page.wait_for_selector("#bars .bar", state="attached")
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


def test_a_phone_need_not_scroll_sideways(watch, films):
    watched = watch(viewport=PHONE, has_touch=True)
    page = watched.open()

    def fits(element: str = "document.documentElement") -> bool:
        return page.evaluate(
            f"{element}.scrollWidth <= {element}.clientWidth && {element}.clientWidth <= {PHONE['width']}"
        )

    assert fits()
    page.click("#refine summary")
    for kind in ("and", "without", "in"):
        page.click(f"[data-add={kind}]")
    assert fits()
    watched.search("a square " + "pneumonoultramicroscopicsilicovolcanoconiosis" * 5)
    assert fits()
    assert (
        page.evaluate("getComputedStyle(document.getElementById('results')).gridTemplateColumns.split(' ').length") == 2
    )
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
    if (element.placeholder) {
      const hint = parse(getComputedStyle(element, "::placeholder").color);
      found.push([`placeholder of ${element.id}`, ratio(over(hint, under), under), 4.5]);
    }
    const border = parse(style.borderTopColor);
    if (field && border[3] !== 0 && !element.matches(".actions *, .open, .main"))
      found.push([`border of ${element.id || element.name}`, ratio(border, ground(element.parentElement)), 3]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrasts(watch, scheme):
    watched = watch(color_scheme=scheme)
    watched.answer("/api/index", lambda body: body.update(untrained=True))
    watched.answer("/api/query", lambda body: body.update(fits_well=False))
    page = watched.open()
    start = page.evaluate(CONTRASTS)
    page = watched.open("/?q=a+red+square&and=1:a+disc&in=*")
    watched.wait_for_hits()
    measured = page.evaluate(CONTRASTS)
    assert len(measured) > 30
    page.locator("#results .open").first.click()
    page.wait_for_selector("#bars .bar", state="attached")
    inside = page.evaluate(CONTRASTS)
    assert len(inside) > 15
    weak = [(name, round(ratio, 2)) for name, ratio, least in [*start, *measured, *inside] if ratio < least]
    assert weak == []


NAMELESS = """() => [...document.querySelectorAll("button, input, select, summary, dialog")].filter((element) => {
  const by = document.getElementById(element.getAttribute("aria-labelledby"));
  const label = [...(element.labels ?? [])].map((one) => one.textContent).join("");
  const text = element.matches("input, select, dialog") ? "" : element.textContent;
  return !(element.ariaLabel || label || text || by?.textContent || "").trim();
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
