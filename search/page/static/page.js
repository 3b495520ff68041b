// The page of `python -m search serve`. The address holds the query, so that links, reload and back keep it.
// Whatever the server or a file's name says becomes text, never HTML.

import {
  $, Moment, ask, closePlayer, inWords, make, openPlayer, range, say, sentence, shownHit, signed, urlOf,
} from "./player.js";

const LARGEST = 64 * 2 ** 20; // bytes that the server takes
const DEFAULTS = { q: "", after: "", before: "", top: "20", per_file: "3", alike: "1", model: "" };
const KEPT = ["in", "after", "before", "top", "per_file", "alike", "model"]; // what "More like this" keeps of a query
const ABOVE = "standard deviations above the average score of all windows with this query";
const UNTRAINED =
  "This CLIP was not trained on videos. It finds what is to be seen, but cannot tell left from right or what comes first.";

const uploads = new Map(); // number of an upload -> its file, for as long as the page is open
const reduced = matchMedia("(prefers-reduced-motion: reduce)");
let moving = !reduced.matches; // whether clips play by themselves
let index = { model: null };
let latest = { key: null, hits: [], stop: new AbortController() };

// ---- The query: form <-> address -> request

function addPart(kind, text = "", weight = 1) {
  const words = make("input", { value: text, maxLength: 500, className: "words" });
  const row = make("label", { className: "part" }, kind === "in" ? "only files in" : kind, words);
  const part = make("div", { className: "parts" }, row);
  words.placeholder = kind === "in" ? "holiday/*" : kind === "and" ? "also this" : "but not this";
  Object.assign(part, { kind, words });
  if (kind !== "in") {
    part.weight = make("input", { type: "number", min: 0.05, step: "any", value: weight, required: true });
    part.append(make("label", {}, "weight", part.weight));
  }
  const remove = make("button", { type: "button", textContent: "✕", ariaLabel: `Remove: ${row.textContent}` });
  remove.onclick = () => (part.remove(), $("refine").querySelector("summary").focus());
  part.append(remove);
  $("parts").append(part);
  return words;
}

function readForm() {
  const address = new URLSearchParams();
  for (const [name, value] of new FormData($("search")))
    if (name in DEFAULTS && value.trim() && value.trim() !== DEFAULTS[name]) address.append(name, value.trim());
  for (const { kind, words, weight } of $("parts").children)
    if (words.value.trim()) address.append(kind, weight ? `${weight.value}:${words.value.trim()}` : words.value.trim());
  return address;
}

function weighted(address, name) {
  return address.getAll(name).map((part) => {
    const [, weight, text] = part.match(/^(\d*\.?\d+):([^]*)$/) ?? [null, 1, part];
    return [text, Number(weight)];
  });
}

function fillForm(address) {
  for (const [name, value] of Object.entries(DEFAULTS)) $("search").elements[name].value = address.get(name) ?? value;
  $("parts").replaceChildren();
  for (const kind of ["and", "without"]) for (const part of weighted(address, kind)) addPart(kind, ...part);
  for (const pattern of address.getAll("in")) addPart("in", pattern);
  const set = [...address.keys()].filter((name) => !["q", "like", "hit"].includes(name)).length;
  say("refined", set ? `(${set} set)` : "");
  if (set) $("refine").open = true;
}

function asQuery(address) {
  const value = (name) => address.get(name) ?? DEFAULTS[name];
  return {
    text: value("q"), also: weighted(address, "and"), without: weighted(address, "without"),
    like: address.get("like"), in: address.getAll("in"), after: value("after"), before: value("before"),
    top: Number(value("top")), per_file: Number(value("per_file")), alike: Number(value("alike")), model: address.get("model"),
  };
}

function postQuery(query, signal) {
  const headers = { "Content-Type": "application/json" };
  return ask("/api/query", { method: "POST", headers, body: JSON.stringify(query), signal });
}

// ---- Searching

const duration = (seconds) => (seconds < 0.1 ? `${Math.max(1, Math.round(1000 * seconds))} ms` : `${seconds.toFixed(1)} s`);

function addressOf(query, hit) {
  const address = new URLSearchParams(query);
  if (hit) address.set("hit", hit.id);
  return address.size ? `?${address}` : location.pathname;
}

function go(address, state = null) {
  if (state || addressOf(address) !== addressOf(location.search) || history.state?.upload)
    history.pushState(state, "", addressOf(address));
  latest.key = null; // asked again, even if it is the same
  return follow();
}

/** Show what the address says. */
async function follow() {
  const address = new URLSearchParams(location.search);
  const opened = address.get("hit");
  address.delete("hit");
  const upload = history.state?.upload;
  const key = upload ? `upload ${upload}` : address.toString();
  if (key !== latest.key) {
    fillForm(address);
    await search(key, address, upload);
  }
  if (!opened || key !== latest.key) closePlayer();
  else if (shownHit()?.id !== opened) await openLinked(opened, asQuery(address).model);
}

async function search(key, address, upload) {
  latest.stop.abort();
  const now = (latest = { key, hits: [], stop: new AbortController() });
  const query = asQuery(address);
  for (const id of ["error", "fit"]) say(id);
  const asked = upload || query.text || query.like || query.also.length || query.without.length;
  document.title = [upload ? history.state.name : query.text, "Search your videos"].filter(Boolean).join(" – ");
  showSought(query, upload);
  $("hint").hidden = Boolean(asked);
  if (!asked) {
    showHits([]);
    return say("status", "");
  }
  say("status", "Searching …");
  $("results").setAttribute("aria-busy", "true");
  try {
    await useModel(query.model ?? DEFAULTS.model);
    const answer = await (upload ? postFile(upload, query, now.stop.signal) : postQuery(query, now.stop.signal));
    for (const hit of answer.hits) hit.model = query.model;
    if (answer.hits.length) await shapeGrid(answer.hits[0]);
    if (now !== latest) return;
    now.hits = answer.hits;
    const count = `${answer.hits.length} ${answer.hits.length === 1 ? "moment" : "moments"}`;
    say("status", answer.hits.length ? `${count} in ${duration(answer.seconds)}` : "No moment was found.");
    say("fit", sentence(answer.note || (answer.fits_well === false ? "nothing fits well; these are the nearest moments" : "")));
    showHits(answer.hits);
  } catch (error) {
    if (error.name === "AbortError" || now !== latest) return;
    showHits([]);
    say("status", "");
    say("error", sentence(error.message, upload ? history.state.name : ""));
  }
  $("results").removeAttribute("aria-busy");
}

function searchFile(file) {
  const kind = /^image\/(?!gif)/.test(file.type) || /\.(jpe?g|png|webp|bmp|tiff?)$/i.test(file.name) ? "image" : "clip";
  if (file.size > LARGEST) {
    const size = `${Math.round(file.size / 2 ** 20)} MB, and the page takes ${LARGEST / 2 ** 20}`;
    return say("error", `${file.name} has ${size}: cut out the part you look for, or use python -m search query --clip.`);
  }
  const upload = Date.now();
  uploads.set(upload, file);
  closePlayer();
  return go(new URLSearchParams(), { upload, name: file.name, kind });
}

function postFile(upload, query, signal) {
  const file = uploads.get(upload);
  if (!file) throw new Error(`The page no longer has ${history.state.name}: choose or drop it again.`);
  const { name, kind } = history.state;
  const address = new URLSearchParams({ kind, name, top: query.top, ...(query.model && { model: query.model }) });
  return ask(`/api/upload?${address}`, { method: "POST", body: file, signal });
}

function showSought({ like, model }, upload) {
  $("sought").hidden = !(like || upload);
  if (!like && !upload) return $("sought").replaceChildren();
  const drop = make("button", { type: "button", textContent: "✕", ariaLabel: "Search for something else" });
  drop.onclick = () => (go(new URLSearchParams()), $("q").focus());
  const picture = make("span", { className: "picture" });
  if (like) picture.append(make("img", { src: urlOf("thumb", { id: like, model }), alt: "" }));
  else if (uploads.has(upload)) preview(uploads.get(upload), history.state.kind, picture);
  const words = { clip: "Moments like the clip ", image: "Moments like the picture " }[upload && history.state.kind];
  const text = make("span", {}, words ?? `Moments like ${like}`, make("bdi", { textContent: upload ? history.state.name : "" }));
  $("sought").replaceChildren(picture, text, drop);
}

function preview(file, kind, place) {
  if (kind === "image") {
    const sized = createImageBitmap(file, { resizeHeight: 96, resizeQuality: "medium" });
    sized.then((bitmap) => {
      const canvas = make("canvas", { width: bitmap.width, height: bitmap.height });
      canvas.getContext("2d").drawImage(bitmap, 0, 0);
      place.append(canvas);
    }, () => {}); // a picture that only the server can read has its name
    return;
  }
  const video = make("video", { src: URL.createObjectURL(file), muted: true, loop: true, playsInline: true });
  video.autoplay = moving;
  video.onerror = () => (video.remove(), URL.revokeObjectURL(video.src));
  place.append(video);
}

// ---- The grid

/** Give the grid's pictures the shape of the first hit's. */
async function shapeGrid(hit) {
  const image = make("img", { src: urlOf("thumb", hit) });
  await image.decode().catch(() => {});
  const ratio = image.naturalWidth / image.naturalHeight || 16 / 9;
  $("results").dataset.shape = ratio < 0.8 ? "tall" : ratio < 1.2 ? "square" : ratio < 1.5 ? "old" : "wide";
}

function showHits(hits) {
  for (const video of $("results").querySelectorAll("video")) video.moment.release();
  const names = shortNames(hits.map(({ file }) => file));
  $("results").replaceChildren(...hits.map((hit, place) => card(hit, place, names.get(hit.file))));
  $("keys").hidden = $("motion").hidden = !hits.length;
  for (const video of $("results").querySelectorAll("video")) inView.observe(video);
}

/** Return, by path, as many of its last parts as tell it from the other paths. */
function shortNames(paths) {
  const end = (path, parts) => path.split("/").slice(-parts).join("/");
  const different = [...new Set(paths)];
  return new Map(different.map((path) => {
    let parts = 1;
    while (different.some((other) => other !== path && end(other, parts) === end(path, parts))) parts += 1;
    return [path, end(path, parts)];
  }));
}

function card(hit, place, name) {
  const video = make("video", { muted: true, playsInline: true, preload: "none", tabIndex: -1 });
  const picture = make("img", { src: urlOf("thumb", hit), loading: "lazy", alt: "" });
  const tab = place ? -1 : 0; // one stop for the tabulator key; arrows move it
  const open = make("button", { type: "button", className: "open", tabIndex: tab },
    make("span", { className: "frame" }, picture, video,
      make("span", { className: "score", textContent: hit.score.toFixed(3), title: "cosine with the query" }),
      make("span", { className: "time", textContent: range(hit) })),
    make("span", { className: "above", textContent: `${inWords(hit.above)} ${signed(hit.above)}`, title: ABOVE }),
    make("bdi", { className: "name", textContent: name, title: hit.file }));
  open.onclick = () => openHit(hit);
  const like = make("button", { type: "button", textContent: "More like this", tabIndex: tab });
  like.onclick = () => moreLike(hit);
  const play = make("button", { type: "button", className: "play", textContent: "Play", hidden: moving, tabIndex: tab });
  play.onclick = () => ((video.asked = !video.asked), settle(video));
  const item = make("li", { id: `hit-${hit.id}` }, open, make("div", { className: "actions" }, like, play));
  const failed = () => item.append(make("p", { className: "dim", textContent: "This browser cannot play it." }));
  new Moment(video, hit, failed);
  video.onplay = video.onpause = () => (play.textContent = video.paused ? "Play" : "Pause");
  item.addEventListener("focusin", () => {
    for (const button of $("results").querySelectorAll("button")) button.tabIndex = item.contains(button) ? 0 : -1;
  });
  return item;
}

async function moreLike(hit) {
  const [kept, now] = [new URLSearchParams(), new URLSearchParams(location.search)];
  for (const name of KEPT) for (const value of now.getAll(name)) kept.append(name, value);
  kept.append("like", hit.id);
  closePlayer();
  await go(kept);
  scrollTo(0, 0);
  $("results").querySelector(".open")?.focus({ preventScroll: true }); // the button that was pressed is gone
}

const inView = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) settle(Object.assign(target, { inView: isIntersecting }));
}, { threshold: 0.25 });

function settle(video) {
  if (video.inView && (moving || video.asked) && !$("player").open) video.moment.play();
  else video.pause();
}

function setMoving(now) {
  moving = now;
  $("motion").textContent = moving ? "Pause clips" : "Play clips";
  for (const button of $("results").querySelectorAll(".play")) button.hidden = moving;
  for (const video of $("results").querySelectorAll("video")) settle(Object.assign(video, { asked: false }));
}

// ---- The dialog: the address says which moment it shows

const actions = {
  like: moreLike,
  moved(hit) {
    history.replaceState(history.state, "", addressOf(location.search, hit));
    showLarge(hit);
  },
  linkOf(hit) {
    const own = new URLSearchParams({ ...(hit.model && { model: hit.model }), like: hit.id });
    const lasting = history.state?.upload || !latest.hits.includes(hit) ? own : location.search;
    return new URL(addressOf(lasting, hit), location.href).href;
  },
  closed(hit) {
    const address = new URLSearchParams(location.search);
    if (address.has("hit") && history.state?.opened) history.back();
    else if (address.has("hit")) {
      address.delete("hit");
      history.replaceState(history.state, "", addressOf(address));
    }
    document.getElementById(`hit-${hit.id}`)?.querySelector(".open").focus();
    for (const video of $("results").querySelectorAll("video")) settle(video);
  },
};

function showLarge(hit) {
  for (const video of $("results").querySelectorAll("video")) video.pause();
  openPlayer(hit, latest.hits, { maps: index.maps, moving, actions });
}

function openHit(hit) {
  history.pushState({ ...history.state, opened: true }, "", addressOf(location.search, hit));
  showLarge(hit);
}

/** Open the moment of a link, which need not be among the hits if the index has changed since. */
async function openLinked(id, model) {
  try {
    const isIt = (hit) => hit.id === id;
    const found = latest.hits.find(isIt) ?? (await postQuery({ like: id, model })).hits.find(isIt);
    if (!found) throw new Error("The moment of this link is no longer in the index.");
    showLarge(Object.assign(found, { model }));
  } catch (error) {
    say("error", sentence(error.message));
  }
}

// ---- Events

function moveInGrid(event) {
  const cards = [...$("results").children];
  const at = cards.findIndex((item) => item.contains(document.activeElement));
  if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
  const columns = cards.filter((item) => item.offsetTop === cards[0].offsetTop).length;
  const to = {
    ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - columns, ArrowDown: at + columns, Home: 0, End: cards.length - 1,
  }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  cards[to]?.querySelector(".open").focus();
}

function showDrop(event) {
  if (![...event.dataTransfer.types].includes("Files")) return;
  event.preventDefault();
  $("drop").hidden = event.type !== "dragover";
  if (event.type === "drop" && event.dataTransfer.files.length) searchFile(event.dataTransfer.files[0]);
}

$("search").onsubmit = (event) => {
  event.preventDefault();
  const address = readForm();
  const like = new URLSearchParams(location.search).get("like");
  if (like && !address.has("q")) address.set("like", like); // words begin a new query
  go(address);
};
for (const button of document.querySelectorAll("[data-add]"))
  button.onclick = () => addPart(button.dataset.add).focus();
$("choose").onclick = () => $("file").click();
$("file").onchange = () => {
  if ($("file").files.length) searchFile($("file").files[0]);
  $("file").value = ""; // the same file may be chosen again
};
$("motion").onclick = () => setMoving(!moving);
$("results").onkeydown = moveInGrid;
reduced.onchange = () => setMoving(!reduced.matches);
for (const type of ["dragover", "dragleave", "drop"]) document.addEventListener(type, showDrop);
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) searchFile(event.clipboardData.files[0]);
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.target.matches("input, select") || $("player").open) return;
  event.preventDefault();
  $("q").select();
});
addEventListener("popstate", follow);

async function useModel(name) {
  if (index.model === name) return;
  index = await ask(`/api/index${name ? `?${new URLSearchParams({ model: name })}` : ""}`);
  const count = (number) => number.toLocaleString("en");
  const every = `windows of ${+index.window.toFixed(1)} s every ${+index.stride.toFixed(1)} s`;
  say("facts", `${count(index.files)} files, ${count(index.windows)} ${every}, model ${index.model}`);
  say("model-note", sentence(index.note || (index.untrained ? UNTRAINED : "")));
}

async function start() {
  try {
    await useModel("");
  } catch (error) {
    return say("error", sentence(error.message));
  }
  DEFAULTS.model = index.model;
  const models = index.models.map((name) => make("option", { value: name, textContent: name }));
  $("search").elements.model.replaceChildren(...models);
  $("models").hidden = models.length < 2;
  setMoving(moving);
  await follow();
}

start();
