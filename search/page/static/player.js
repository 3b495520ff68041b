// A moment: how the page words it, plays it and shows it large. Whatever the server or a file's name says becomes text.

const IN_WORDS = [[3, "far above average"], [1, "above average"], [-1, "near average"]];
const moments = new Set(); // that play now

export const $ = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children); // strings become text
  return element;
}

export function draw(tag, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

export function say(id, text) {
  $(id).textContent = text ?? "";
  if ($(id).classList.contains("note")) $(id).hidden = !text;
}

/** A message as a sentence. The name of a file that it begins with stays as it is. */
export function sentence(text, name = "") {
  const begin = name && text.startsWith(name) ? text.slice(0, 1) : text.slice(0, 1).toUpperCase();
  return text && begin + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

export function clock(seconds) {
  const tenths = Math.round(seconds * 10);
  const [hours, minutes] = [Math.floor(tenths / 36000), Math.floor(tenths / 600) % 60];
  const rest = ((tenths % 600) / 10).toFixed(1).padStart(4, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

export const range = (hit) => `${clock(hit.start)}–${clock(hit.end)}`;
export const inWords = (above) => IN_WORDS.find(([least]) => above >= least)?.[1] ?? "below average";
export const signed = (number) => (number < 0 ? "−" : "+") + Math.abs(number).toFixed(1);
export const folderAndName = (path) => path.match(/^(.*\/)?([^]*)$/).slice(1).map((part) => part ?? "");

/** The address of what the server has of a hit: its video, clip, thumb or maps. */
export function urlOf(what, { id, model }) {
  return `/${what}/${encodeURIComponent(id).replace("%3A", ":")}${model ? `?model=${encodeURIComponent(model)}` : ""}`;
}

export async function ask(url, options = {}) {
  let answer;
  try {
    answer = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer: is python -m search serve still running?");
  }
  const body = await answer.json().catch(() => ({}));
  if (answer.ok) return body;
  throw new Error(typeof body.error === "string" ? body.error : `The server answers ${answer.status} to this request.`);
}

/** Plays [start, end) of a hit's file again and again, or the server's preview where the browser cannot read the file. */
export class Moment {
  constructor(video, hit, failed) {
    video.moment = this;
    Object.assign(this, { video, hit, failed, repeats: true, source: "", base: 0, turned: 0 });
    video.addEventListener("loadedmetadata", () => (video.videoWidth ? this.seek(hit.start) : this.fall()));
    video.addEventListener("seeked", () => video.classList.add("ready")); // before, it would show another moment
    video.addEventListener("error", () => this.fall());
    video.addEventListener("play", () => moments.add(this));
  }

  get time() { // in the file
    return this.video.currentTime + this.base;
  }

  seek(time) {
    this.video.currentTime = Math.max(0, time - this.base) + 0.001; // the frame that begins then, not the one before
  }

  load(source, base) {
    Object.assign(this, { source, base });
    this.video.classList.remove("ready");
    this.video.src = urlOf(source, this.hit);
  }

  play() {
    if (!this.source) this.load("video", 0);
    if (this.source !== "none") this.video.play().catch(() => {}); // interrupted, or not allowed: the picture stays
  }

  fall() {
    if (this.source === "video") {
      const plays = !this.video.paused;
      this.load("clip", this.hit.start);
      if (plays) this.play();
    } else if (this.source === "clip") {
      this.source = "none";
      this.failed();
    }
  }

  /** Go back to the start when the moment is over; called for each picture that the screen shows. */
  turn(now) {
    const over = this.video.ended || this.time >= this.hit.end - 0.02 || this.time < this.hit.start - 0.5;
    if (!over || !this.repeats || this.video.seeking || now - this.turned < 200) return;
    this.turned = now;
    this.seek(this.hit.start);
    this.video.play().catch(() => {});
  }

  release() {
    moments.delete(this);
    this.source = "none";
    this.video.removeAttribute("src");
    this.video.load(); // closes its connection
  }
}

// ---- The dialog

let shown = null; // {hit, hits, moment, maps, actions, frame} that the dialog shows

/**
 * Show a hit large. `hits` are those of its query; `actions` has moved(hit), like(hit), linkOf(hit) and closed(hit);
 * `maps`: whether the model has regions and counts of prompts to draw.
 */
export function openPlayer(hit, hits, { maps, moving, actions }) {
  shown?.moment.release();
  const video = make("video", { muted: !$("sound").checked, playsInline: true, preload: "auto" });
  $("stage").replaceChildren(make("img", { src: urlOf("thumb", hit), alt: "" }), video, $("regions"));
  for (const id of ["trouble", "copied"]) say(id);
  const now = (shown = { hit, hits, actions, maps: null, frame: -1 });
  now.moment = new Moment(video, hit, () => say("trouble", "This browser cannot play the file, and its preview failed."));
  now.moment.repeats = $("loop").checked = true;
  video.onplay = video.onpause = () => say("play", video.paused ? "Play" : "Pause");
  video.addEventListener("loadedmetadata", showSpan);
  for (const id of ["gaps", "overlay", "regions"]) $(id).toggleAttribute("hidden", true);
  $("link").hidden = true;
  const [folder, name] = folderAndName(hit.file);
  $("name").replaceChildren(make("bdi", { textContent: folder, className: "dim" }), make("bdi", { textContent: name }));
  const place = hits.findIndex(({ id }) => id === hit.id);
  const outs = `${inWords(hit.above)}: ${signed(hit.above)} standard deviations from the mean of all windows`;
  const rank = place < 0 ? [] : [`${place + 1} of ${hits.length}`];
  say("details", [...rank, range(hit), `score ${hit.score.toFixed(3)}, ${outs}`, hit.id].filter(Boolean).join(" · "));
  [$("previous").disabled, $("next").disabled] = [place <= 0, place < 0 || place === hits.length - 1];
  showSpan();
  if (!$("player").open) $("player").showModal();
  if (moving) now.moment.play();
  else say("play", "Play");
  if (maps) loadMaps(now);
}

export function closePlayer() {
  if ($("player").open) $("player").close();
}

export const shownHit = () => ($("player").open ? shown?.hit : null);

async function loadMaps(now) {
  try {
    const maps = await ask(urlOf("maps", now.hit));
    if (now !== shown || !maps.layers.length) return;
    now.maps = maps;
  } catch (error) {
    if (now === shown) say("trouble", sentence(error.message));
    return;
  }
  const layer = Math.min($("layer").value || 0, now.maps.layers.length - 1);
  $("layer").replaceChildren(...now.maps.layers.map((_, i) => make("option", { value: i, textContent: i + 1 })));
  $("layer").value = layer;
  $("overlay").hidden = false;
  drawMaps();
}

/** Draw the counts of prompts of the chosen layer; its regions follow with the next picture. */
function drawMaps() {
  if (!shown?.maps) return;
  const { times, layers } = shown.maps;
  const { prompts } = layers[$("layer").value];
  $("regions").toggleAttribute("hidden", !$("draw").checked);
  $("gaps").hidden = !$("draw").checked || !prompts.length;
  shown.frame = -1;
  const { start, end } = shown.hit;
  const at = (time) => `${((100 * (time - start)) / (end - start)).toFixed(2)}%`;
  const most = Math.max(1, ...prompts);
  const bars = prompts.flatMap((count, gap) => {
    const height = (34 * count) / most;
    const width = `${((100 * (times[gap + 1] - times[gap])) / (end - start)).toFixed(2)}%`;
    return [
      draw("rect", { class: "bar", x: at(times[gap]), width, y: 50 - height, height }),
      draw("text", { x: at((times[gap] + times[gap + 1]) / 2), y: 46 - height }, count),
    ];
  });
  const frames = times.map((time) => draw("line", { class: "frame", x1: at(time), x2: at(time), y1: 50, y2: 57 }));
  const head = draw("line", { class: "head", id: "head", x1: 0, x2: 0, y1: 0, y2: 58 });
  const base = draw("line", { class: "base", x1: 0, x2: "100%", y1: 50, y2: 50 });
  $("bars").replaceChildren(...bars, base, ...frames, head);
  $("bars").setAttribute("aria-label", `Temporal prompts between the frames, in order: ${prompts.join(", ")}`);
}

/** Draw the regions of the frame that the model saw nearest to this time. */
function drawRegions(time) {
  const { moment, maps } = shown;
  const { videoWidth: width, videoHeight: height } = moment.video;
  if (!maps || !width || !$("draw").checked) return;
  const away = maps.times.map((at) => Math.abs(at - time));
  const frame = away.indexOf(Math.min(...away));
  const place = `${(100 * (time - shown.hit.start)) / (shown.hit.end - shown.hit.start)}%`;
  for (const end of ["x1", "x2"]) $("head").setAttribute(end, place);
  if (frame === shown.frame) return;
  shown.frame = frame;
  const [rows, columns] = maps.grid;
  const [left, top, wide, high] = maps.seen.map((share, i) => share * (i % 2 ? height : width));
  const cells = maps.layers[$("layer").value].regions[frame];
  const rects = cells.map((cell) => draw("rect", {
    x: left + ((cell % columns) * wide) / columns, y: top + (Math.floor(cell / columns) * high) / rows,
    width: wide / columns, height: high / rows,
  }));
  $("regions").setAttribute("viewBox", `0 0 ${width} ${height}`);
  $("regions").replaceChildren(...rects);
}

/** Show which seconds the file has, and where on its time line the moment and its other hits lie. */
function showSpan() {
  const { hit, hits, moment } = shown;
  const [first, last] = spanOf(moment);
  Object.assign($("seek"), { min: first, max: last, value: moment.time });
  const share = (time) => (100 * (Math.min(Math.max(time, first), last) - first)) / (last - first || 1);
  const marks = hits.filter(({ file, id }) => file === hit.file && id !== hit.id).concat(hit).map((one) => draw("rect", {
    class: one === hit ? "this" : "other", x: `${share(one.start)}%`, y: 0, height: "100%",
    width: `${Math.max(share(one.end) - share(one.start), 0.4)}%`,
  }));
  $("marks").replaceChildren(...marks);
}

function spanOf({ hit, source, video }) {
  if (source === "clip") return [hit.start, hit.end]; // a preview has no more
  return [0, Math.max(Number.isFinite(video.duration) ? video.duration : 0, hit.duration || 0, hit.end)];
}

function showTime() {
  const { moment } = shown;
  say("clock", `${clock(moment.time)} of ${clock(spanOf(moment)[1])}`);
  if (document.activeElement !== $("seek") || !moment.video.paused) $("seek").value = moment.time;
  $("seek").setAttribute("aria-valuetext", clock(moment.time));
  drawRegions(moment.time);
}

function step(by) {
  const hit = shown.hits[shown.hits.findIndex(({ id }) => id === shown.hit.id) + by];
  if (hit && shown.hits.includes(shown.hit)) shown.actions.moved(hit);
}

async function copyLink() {
  const link = shown.actions.linkOf(shown.hit);
  $("link").value = link;
  try {
    await navigator.clipboard.writeText(link);
    say("copied", "Copied.");
  } catch { // pages of other machines may not write to the clipboard
    $("link").hidden = false;
    $("link").select();
    say("copied", "Copy it from the field.");
  }
}

function everyPicture(now) {
  for (const moment of moments) {
    moment.turn(now);
    if (moment.video.paused && !moment.video.ended) moments.delete(moment);
  }
  if (shown && $("player").open) showTime();
  requestAnimationFrame(everyPicture);
}

$("play").onclick = () => (shown.moment.video.paused ? shown.moment.play() : shown.moment.video.pause());
$("loop").onchange = () => void (shown.moment.repeats = $("loop").checked);
$("sound").onchange = () => void (shown.moment.video.muted = !$("sound").checked);
$("draw").onchange = $("layer").onchange = drawMaps;
$("previous").onclick = () => step(-1);
$("next").onclick = () => step(1);
$("like").onclick = () => shown.actions.like(shown.hit);
$("copy").onclick = copyLink;
$("close").onclick = closePlayer;
$("seek").oninput = () => {
  const time = Number($("seek").value);
  if (time < shown.hit.start || time >= shown.hit.end) shown.moment.repeats = $("loop").checked = false;
  shown.moment.seek(time);
};
$("player").onkeydown = (event) => {
  if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (by) step(by);
};
$("player").onclick = (event) => {
  if (event.target === $("player")) closePlayer(); // a click beside the dialog
};
$("player").onclose = () => {
  shown.moment.release();
  shown.actions.closed(shown.hit);
};
requestAnimationFrame(everyPicture);
