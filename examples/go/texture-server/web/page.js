// The page: asks for a wall of textures as one stream of server-sent events and shows each as it becomes.
// EventSource cannot say why a request was refused (429 and its Retry-After), so the stream is read with fetch.
"use strict";

const $ = (id) => document.getElementById(id);
const form = $("form");
const wall = $("wall");

let limits; // what the server allows
let run = null; // the wall in the making: {abort, tiles}

start();

async function start() {
  try {
    const response = await fetch("/limits");
    if (!response.ok) throw new Error(`status ${response.status}`);
    limits = await response.json();
  } catch {
    say("The server does not answer. Reload the page to try again.");
    return;
  }
  for (let size = limits.model_size; size <= limits.max_size; size *= 2) {
    form.size.add(new Option(`${size} × ${size}`, size));
  }
  for (const count of [1, 6, 12, 24, 48]) {
    if (count <= limits.max_textures) form.count.add(new Option(count, count));
  }
  form.steps.max = limits.max_steps;
  $("about").textContent = `Model ${limits.model_digest.slice(0, 12)}, ${limits.library}.`;
  const asked = new URLSearchParams(location.hash.slice(1));
  choose("seed", asked.get("seed"), 1);
  choose("steps", asked.get("steps"), limits.steps);
  choose("size", asked.get("size"), limits.size);
  choose("count", asked.get("count"), Math.min(12, limits.max_textures));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    make();
  });
  form.steps.addEventListener("input", showSteps);
  $("stop").addEventListener("click", () => run?.abort.abort());
  $("random").addEventListener("click", () => {
    form.seed.value = Math.floor(Math.random() * 1e6);
    make();
  });
  $("copy").addEventListener("click", copy);
  addEventListener("pagehide", () => run?.abort.abort()); // the server stops making what nobody waits for
  make();
}

// choose sets a control, if it can have the value.
function choose(name, value, otherwise) {
  for (const candidate of [value, otherwise]) {
    if (candidate === null) continue;
    form[name].value = candidate;
    if (form[name].value === String(candidate) && form[name].checkValidity()) break;
  }
  if (form[name].selectedIndex === -1) form[name].selectedIndex = 0;
  showSteps();
}

function showSteps() {
  $("steps-value").textContent = form.steps.value;
}

function say(text) {
  $("status").textContent = text;
}

async function make() {
  if (!form.reportValidity()) return;
  run?.abort.abort();
  const count = Number(form.count.value);
  const asked = new URLSearchParams({
    seed: String(Math.min(Number(form.seed.value), limits.max_seed - count + 1)),
    steps: form.steps.value,
    size: form.size.value,
    count: form.count.value,
  });
  history.replaceState(null, "", `#${asked}`); // an address to pass on
  const mine = { abort: new AbortController(), tiles: build(asked), ready: 0, failed: 0 };
  run = mine;
  const { signal } = mine.abort;
  $("stop").disabled = false;
  wall.setAttribute("aria-busy", "true");
  advance(mine);
  try {
    const response = await ask(`/events?${asked}`, signal);
    await read(response, (name, data) => show(mine, name, data));
    const made = `${mine.ready} ${mine.ready === 1 ? "texture" : "textures"} made`;
    if (run === mine) say(mine.failed ? `${made}, ${mine.failed} could not be: ${mine.why}` : `${made}.`);
  } catch (error) {
    if (run !== mine) return; // another wall has taken its place
    say(signal.aborted ? `Stopped: ${mine.ready} of ${mine.tiles.length} textures made.` : error.message);
  }
  if (run !== mine) return;
  run = null;
  $("stop").disabled = true;
  wall.setAttribute("aria-busy", "false");
  for (const tile of mine.tiles) tile.item.classList.add("over");
}

// ask sends the request, again and again while the server is full.
async function ask(url, signal) {
  for (;;) {
    let response;
    try {
      response = await fetch(url, { signal });
    } catch (error) {
      throw signal.aborted ? error : new Error("The server cannot be reached.");
    }
    if (response.ok) return response;
    const problem = await response.json().catch(() => ({ detail: `The server answered ${response.status}.` }));
    if (response.status !== 429 && response.status !== 503) throw new Error(problem.detail);
    for (let seconds = problem.retry_after ?? 1; seconds > 0; seconds--) {
      say(`The server is busy. Asking again in ${seconds} s.`);
      await new Promise((done) => setTimeout(done, 1000));
      signal.throwIfAborted();
    }
  }
}

// read calls tell(name, data) for each server-sent event.
async function read(response, tell) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let last = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s, 2)));
      if (!fields.event) continue;
      last = fields.event;
      tell(fields.event, JSON.parse(fields.data));
    }
  }
  if (last !== "end") throw new Error("The connection broke off.");
}

// build lays out the wall that is to come.
function build(asked) {
  const tiles = Array.from({ length: Number(asked.get("count")) }, (_, i) => {
    const item = $("tile").content.firstElementChild.cloneNode(true);
    const seed = Number(asked.get("seed")) + i;
    const tile = {
      item,
      seed,
      done: 0,
      total: Number(asked.get("steps")),
      button: item.querySelector("button"),
      image: item.querySelector("img"),
      caption: item.querySelector(".caption"),
      progress: item.querySelector("progress"),
    };
    tile.caption.textContent = `Seed ${seed}`;
    tile.progress.setAttribute("aria-label", `Texture of seed ${seed}`);
    item.dataset.seed = seed;
    return tile;
  });
  wall.replaceChildren(...tiles.map((tile) => tile.item));
  return tiles;
}

function show(mine, name, data) {
  if (run !== mine || name === "end") return;
  const tile = mine.tiles[data.index];
  tile.done = data.done;
  tile.progress.value = data.done / data.total;
  if (data.image) tile.image.src = data.image;
  if (name === "texture") {
    mine.ready++;
    tile.item.classList.add("ready");
    tile.button.disabled = false;
    tile.button.setAttribute("aria-label", `Texture of seed ${data.seed}: look closer`);
    tile.image.alt = `Texture of seed ${data.seed}`;
    tile.button.addEventListener("click", () => look(tile, data));
  } else if (name === "failed") {
    mine.failed++;
    mine.why = data.error.detail;
    tile.done = tile.total;
    tile.item.classList.add("over");
    tile.caption.textContent = `Seed ${data.seed}: failed`;
  }
  advance(mine);
}

function advance(mine) {
  const total = mine.tiles.reduce((sum, tile) => sum + tile.total, 0);
  const done = mine.tiles.reduce((sum, tile) => sum + tile.done, 0);
  $("progress").value = done / total;
  say(`${mine.ready} of ${mine.tiles.length} ready, ${Math.floor((100 * done) / total)} % of all steps done`);
}

// look shows one texture repeated, as it would cover something.
function look(tile, data) {
  const size = new URLSearchParams(data.url.split("?")[1]).get("size");
  $("detail-title").textContent = `Seed ${data.seed}`;
  $("detail-facts").textContent = `${size} × ${size} pixels, ${data.total} steps. Shown three times in each direction.`;
  $("tiled").style.backgroundImage = `url(${data.image})`;
  $("tiled").setAttribute("aria-label", `Texture of seed ${data.seed}, repeated`);
  $("download").href = data.url;
  $("download").download = `texture-${data.seed}.png`;
  $("copied").textContent = "";
  $("detail").showModal();
}

async function copy() {
  try {
    await navigator.clipboard.writeText($("download").href);
    $("copied").textContent = "Copied";
  } catch {
    $("copied").textContent = $("download").href; // no right to the clipboard: to be marked by hand
  }
}
