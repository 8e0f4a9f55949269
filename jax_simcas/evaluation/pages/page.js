
"use strict";
// Draws the document of this page. Text comes into the page as text only: createTextNode and textContent, never as HTML.

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const text = data.document;
const tokens = tokensOf(data.tokens);
const written = data.written;
const BLOCK = 1024; // tokens that are drawn together
const AHEAD = "120% 0px"; // how far beyond the window
const percent = (share) => `${(100 * share).toFixed(share && share < 0.0995 ? 1 : 0)} %`;
const plural = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

// Data

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

/** Whole numbers of LEB128 bytes, zigzag: 0, -1, 1, -2, ... */
function integersOf(base64) {
  const bytes = bytesOf(base64);
  const out = new Int32Array(bytes.length);
  let count = 0, value = 0, shift = 0;
  for (const byte of bytes) {
    value |= (byte & 127) << shift;
    shift += 7;
    if (byte < 128) {
      out[count++] = (value >>> 1) ^ -(value & 1);
      value = shift = 0;
    }
  }
  return out.subarray(0, count);
}

function tokensOf({ spans, keep, kept, chunks }) {
  const gaps = integersOf(spans), bits = bytesOf(kept), counts = integersOf(chunks);
  const count = gaps.length / 2;
  const start = new Int32Array(count), end = new Int32Array(count), isKept = new Uint8Array(count);
  const first = new Int32Array(counts.length + 1); // token of each chunk
  for (let i = 0, at = 0; i < count; i++) {
    start[i] = at + gaps[2 * i];
    end[i] = at = start[i] + gaps[2 * i + 1];
    isKept[i] = (bits[i >> 3] >> (i & 7)) & 1;
  }
  counts.forEach((n, k) => (first[k + 1] = first[k] + n));
  const keptBefore = new Int32Array(count + 1);
  isKept.forEach((flag, i) => (keptBefore[i + 1] = keptBefore[i] + flag));
  return { count, start, end, kept: isKept, keep: new Uint16Array(bytesOf(keep).buffer), chunks: counts.length, first, keptBefore };
}

/** The last index whose value is at most `value`; -1 where there is none. `values` ascend. */
function lastAtMost(values, value, length = values.length) {
  let low = 0, high = length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

const chunkOf = (token) => lastAtMost(tokens.first, token, tokens.chunks);
const tokenAt = (place) => Math.max(lastAtMost(tokens.start, place), 0);
const probability = (token) => (tokens.keep[token] / 65535).toFixed(3);
const wordOf = (token) => text.slice(tokens.start[token], tokens.end[token]);
const keptIn = (from, to) => tokens.keptBefore[to] - tokens.keptBefore[from];

// Elements

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Blocks: runs of tokens with the text up to the next. All hold their text, so that it can be found and read aloud;
// those near the window are drawn token by token.

const spans = { evidence: data.evidence ?? [], hit: [] };
const starts = { evidence: spans.evidence.map(([start]) => start), hit: [] };
let currentHit = -1, currentToken = -1;
let attended = new Map(); // token -> share of the attention of the chosen token of the summary

function blocksOf() {
  const cuts = [0];
  for (let at = 0; at < tokens.count; cuts.push(at)) {
    const border = tokens.first[lastAtMost(tokens.first, at + BLOCK)];
    at = border > at ? border : at + BLOCK; // within a chunk that is longer
  }
  const edges = cuts.map((token) => (token < tokens.count ? tokens.start[token] : 0));
  edges[0] = 0;
  edges[edges.length - 1] = tokens.count ? tokens.end[tokens.count - 1] : 0;
  for (let i = 1; i < edges.length; i++) edges[i] = Math.max(edges[i], edges[i - 1]);
  const read = cuts.slice(1).map((to, i) => ({ from: cuts[i], to, start: edges[i], end: edges[i + 1] }));
  const rest = [];
  for (let at = edges.at(-1); at < text.length; at += 4000) {
    rest.push({ from: tokens.count, to: tokens.count, start: at, end: Math.min(at + 4000, text.length) });
  }
  return [...read, ...rest];
}

const blocks = blocksOf();
const blockStarts = blocks.map((block) => block.start);

/** Text [start, end) in `parent`, with evidence and matches within it marked. */
function appendText(parent, start, end) {
  const cuts = new Set([start, end]);
  for (const kind of ["evidence", "hit"]) {
    for (let i = Math.max(lastAtMost(starts[kind], start), 0); i < starts[kind].length && starts[kind][i] < end; i++) {
      for (const edge of spans[kind][i]) if (edge > start && edge < end) cuts.add(edge);
    }
  }
  const sorted = [...cuts].sort((a, b) => a - b);
  for (let i = 0; i + 1 < sorted.length; i++) {
    const piece = document.createTextNode(text.slice(sorted[i], sorted[i + 1]));
    const names = ["evidence", "hit"].flatMap((kind) => namesOf(kind, sorted[i], sorted[i + 1]));
    parent.append(names.length ? element("span", { class: names.join(" ") }, piece) : piece);
  }
}

function namesOf(kind, start, end) {
  const i = lastAtMost(starts[kind], start);
  if (i < 0 || spans[kind][i][1] <= start) return [];
  const names = [kind];
  if (kind === "evidence" && spans[kind][i][0] === start) names.push("first");
  if (kind === "evidence" && spans[kind][i][1] === end) names.push("last");
  if (kind === "hit" && i === currentHit) names.push("now");
  return names;
}

function drawToken(i, from) {
  const kept = tokens.kept[i];
  const made = element(kept ? "mark" : "span", { "data-token": i, title: titleOf(i) });
  if (kept) {
    made.style.setProperty("--p", tokens.keep[i] / 65535);
    if (i === 0 || !tokens.kept[i - 1]) made.classList.add("first");
    if (i + 1 === tokens.count || !tokens.kept[i + 1]) made.classList.add("last");
  }
  made.classList.toggle("attended", attended.has(i));
  made.classList.toggle("current", i === currentToken);
  appendText(made, from, tokens.end[i]);
  return made;
}

/** One chunk's part of a block: its number and share before the text. */
function drawChunk(k, from, to, start, end) {
  const [first, last] = [tokens.first[k], tokens.first[k + 1]];
  const body = element("p", { lang: "", dir: "auto" });
  let at = start;
  for (let i = from; i < to; i++) {
    const begin = Math.max(tokens.start[i], at); // several tokens may share a character
    appendText(body, at, Math.min(begin, end));
    if (begin < tokens.end[i]) body.append(drawToken(i, begin));
    at = Math.max(at, tokens.end[i]);
  }
  appendText(body, at, Math.max(end, at));
  if (from > first) return element("section", { class: "chunk rest" }, element("span"), body);
  const kept = keptIn(first, last);
  const bar = element("i");
  bar.style.setProperty("--share", kept / (last - first));
  const title = element("h3", {}, `Chunk ${k + 1}: ${percent(kept / (last - first))}`, element("br"), `${kept} of ${last - first} kept`, bar);
  return element("section", { class: "chunk" }, title, body);
}

function drawn(block) {
  if (block.from === block.to) {
    const body = element("p", { lang: "", dir: "auto", class: "unread" });
    appendText(body, block.start, block.end);
    return [body];
  }
  const rows = [];
  let from = block.from, start = block.start;
  while (from < block.to) {
    const k = chunkOf(from);
    const to = Math.min(tokens.first[k + 1], block.to);
    const end = to < block.to ? Math.max(tokens.start[to], start) : block.end;
    rows.push(drawChunk(k, from, to, start, end));
    [from, start] = [to, end];
  }
  return rows;
}

function plain(block) {
  const name = block.from === block.to ? { class: "unread" } : {};
  return [element("p", { lang: "", dir: "auto", ...name }, text.slice(block.start, block.end))];
}

function draw(block) {
  block.drawn = true;
  block.element.replaceChildren(...drawn(block));
}

function redraw() {
  blocks.filter((block) => block.drawn).forEach(draw);
}

function makeBlocks() {
  const observer = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        const block = blocks[target.dataset.block];
        if (isIntersecting && !block.drawn) draw(block);
        if (!isIntersecting && block.drawn && !target.contains(document.activeElement)) {
          block.drawn = false;
          target.replaceChildren(...plain(block));
        }
      }
    },
    { rootMargin: AHEAD },
  );
  const made = blocks.map((block, i) => {
    block.element = element("div", { class: "block", "data-block": i }, ...plain(block));
    const lines = Math.max((block.end - block.start) / 75, 1) + (tokens.count ? 1 : 0);
    block.element.style.containIntrinsicSize = `auto 40rem auto ${Math.round(28 * lines)}px`;
    return block.element;
  });
  $("document").append(...made);
  made.forEach((each) => observer.observe(each));
}

// Going places

function show(target) {
  target.scrollIntoView({ block: "center" });
  requestAnimationFrame(() => target.isConnected && target.scrollIntoView({ block: "center" }));
}

function goToCharacter(place, find) {
  const block = blocks[Math.max(lastAtMost(blockStarts, place), 0)];
  if (!block) return;
  if (!block.drawn) draw(block);
  show((find && block.element.querySelector(find)) || block.element);
}

const elementOf = (token) => document.querySelector(`[data-token="${token}"]`);

function goToToken(token, speak = true) {
  if (token < 0 || token >= tokens.count) return;
  elementOf(currentToken)?.classList.remove("current");
  currentToken = token;
  $("chunk").value = chunkOf(token) + 1;
  goToCharacter(tokens.start[token], `[data-token="${token}"]`);
  elementOf(token)?.classList.add("current");
  tell(token, speak);
}

function goToChunk(k) {
  const chunk = Math.min(Math.max(k, 0), tokens.chunks - 1);
  goToToken(Math.min(tokens.first[chunk], tokens.count - 1));
}

/** The first token of the next (+1) or previous (-1) run of kept tokens; -1 where there is none. */
function keptRun(from, step) {
  const begins = (i) => tokens.kept[i] && (i === 0 || !tokens.kept[i - 1]);
  for (let i = from + step; i >= 0 && i < tokens.count; i += step) if (begins(i)) return i;
  return -1;
}

function goToKept(step) {
  const found = keptRun(currentToken, step);
  if (found < 0) say("No kept passage there.");
  else goToToken(found);
}

function goToEvidence(step) {
  const here = currentToken < 0 ? -1 : tokens.start[currentToken];
  const after = starts.evidence.findIndex((start) => start > here);
  const next = after < 0 ? starts.evidence.length : after;
  const target = step > 0 ? next : starts.evidence.findLastIndex((start) => start < here);
  if (!spans.evidence[target]) say("No marked evidence there.");
  else goToToken(tokenAt(spans.evidence[target][0]));
}

// What is said of a token

function titleOf(token) {
  return `keep-probability ${probability(token)}, ${tokens.kept[token] ? "kept" : "not kept"}`;
}

const readers = new Map(); // token of the document -> [token of the summary, share]

function tell(token, speak) {
  const parts = [`“${wordOf(token).trim()}”: ${titleOf(token)}; chunk ${chunkOf(token) + 1}`];
  const i = lastAtMost(starts.evidence, tokens.end[token] - 1);
  if (i >= 0 && spans.evidence[i][1] > tokens.start[token]) parts.push("marked evidence");
  const by = (readers.get(token) ?? []).map(([t, share]) => `“${summaryWord(t)}” ${percent(share)}`);
  if (by.length) parts.push(`attended to for ${by.join(", ")}`);
  $("token").textContent = `${parts.join("; ")}.`;
  if (speak) say($("token").textContent);
}

function say(message) {
  $("live").textContent = message;
}

// The summary and where the decoder looked

const summaryWord = (t) => data.summary.slice(...written.spans[t]).trim();

function drawSummary() {
  if (!written || !written.spans.length) return;
  const pieces = [];
  let at = 0;
  written.spans.forEach(([start, end], t) => {
    const word = data.summary.slice(start, end);
    const space = word.length - word.trimStart().length;
    pieces.push(data.summary.slice(at, start + space));
    const attributes = { class: "token", role: "button", "aria-pressed": "false", tabindex: t ? -1 : 0, "data-written": t };
    const made = element("span", attributes, word.slice(space));
    made.title = written.places[t].map((place) => `${percent(place[3])} ${placeName(place)}`).join("\n");
    pieces.push(made);
    at = end;
    for (const place of written.places[t]) {
      if (place[1] < 0) continue;
      const token = tokenAt(place[1]);
      readers.set(token, [...(readers.get(token) ?? []), [t, place[3]]]);
    }
  });
  $("summary").replaceChildren(...pieces, data.summary.slice(at));
  for (const id of ["summary-help", "attended-legend"]) $(id).hidden = false;
}

function placeName([chunk, start, end]) {
  if (start < 0) return `${data.query === null ? "the end" : "the query or the end"} of chunk ${chunk + 1}`;
  return `“${text.slice(start, end).trim()}” in chunk ${chunk + 1}`;
}

/** A place with some text around it. */
function placeButton([chunk, start, end, share]) {
  if (start < 0) return element("span", {}, `${percent(share)} ${placeName([chunk, start, end])}`);
  const clean = (part) => part.replace(/\s+/g, " ");
  const made = element("button", { type: "button" }, `${percent(share)}, chunk ${chunk + 1}: …${clean(text.slice(Math.max(start - 40, 0), start))}`);
  made.append(element("strong", {}, clean(text.slice(start, end))), `${clean(text.slice(end, end + 40))}…`);
  made.addEventListener("click", () => goToToken(tokenAt(start)));
  return made;
}

function choose(t) {
  const all = $("summary").querySelectorAll(".token");
  all.forEach((each, number) => {
    each.setAttribute("aria-pressed", number === t);
    each.tabIndex = number === t ? 0 : -1;
  });
  for (const token of attended.keys()) elementOf(token)?.classList.remove("attended");
  const places = written.places[t];
  attended = new Map(places.filter((place) => place[1] >= 0).map((place) => [tokenAt(place[1]), place[3]]));
  for (const token of attended.keys()) elementOf(token)?.classList.add("attended");
  $("places-title").textContent = `The decoder wrote “${summaryWord(t)}” looking at`;
  $("places").replaceChildren(...places.map((place) => element("li", {}, placeButton(place))));
  const listed = places.reduce((sum, place) => sum + place[3], 0);
  const state = written.state[t];
  $("rest").textContent = `and ${percent(state)} at the document state, ${percent(Math.max(1 - listed - state, 0))} at other kept places`;
  for (const id of ["places-title", "places", "rest"]) $(id).hidden = false;
  say(`${$("places-title").textContent}: ${places.map((place) => `${percent(place[3])} ${placeName(place)}`).join("; ")}`);
  drawOverview();
}

function summaryKeys(event) {
  const here = event.target.dataset?.written;
  if (here === undefined) return;
  const last = written.spans.length - 1;
  const to = { ArrowRight: +here + 1, ArrowDown: +here + 1, ArrowLeft: here - 1, ArrowUp: here - 1, Home: 0, End: last, Enter: +here, " ": +here }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  const target = Math.min(Math.max(to, 0), last);
  $("summary").querySelectorAll(".token")[target].focus();
  choose(target);
}

// Search

function findAll(query) {
  if (!query.trim()) return [];
  const pattern = query.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&").replace(/\s+/gu, "\\s+");
  return Array.from(text.matchAll(new RegExp(pattern, "giu")), (match) => [match.index, match.index + match[0].length]);
}

function search() {
  spans.hit = findAll($("query").value);
  starts.hit = spans.hit.map(([start]) => start);
  currentHit = -1;
  $("hits").textContent = $("query").value.trim() ? plural(spans.hit.length, "match").replace("matchs", "matches") : "";
  redraw();
}

function goToHit(step) {
  if (!spans.hit.length) return;
  const count = spans.hit.length;
  currentHit = currentHit < 0 && step < 0 ? count - 1 : (currentHit + step + count) % count;
  redraw();
  goToCharacter(spans.hit[currentHit][0], ".hit.now");
  $("hits").textContent = `${(currentHit + 1).toLocaleString("en")} of ${plural(count, "match").replace("matchs", "matches")}`;
}

// The overview: a bar for each chunk, or for some neighbours

function drawOverview() {
  const svg = $("overview"), bins = Math.min(tokens.chunks, 300);
  if (!bins) return;
  const binOf = (k) => Math.min(Math.floor((k * bins) / tokens.chunks), bins - 1);
  const edges = Array.from({ length: bins + 1 }, (_, i) => tokens.first[Math.ceil((i * tokens.chunks) / bins)]);
  const shares = Array.from({ length: bins }, (_, i) => keptIn(edges[i], edges[i + 1]) / Math.max(edges[i + 1] - edges[i], 1));
  const highest = Math.max(...shares);
  const bar = (x, y, h) => `M${x + 0.05} ${y}v${-h}h.9v${h}z`;
  const places = (list, y) => [...new Set(list.map((token) => binOf(chunkOf(token))))].map((x) => bar(x, y, 5)).join("");
  const paths = {
    bars: shares.map((share, i) => (share ? bar(i, 40, Math.max((38 * share) / highest, 0.7)) : "")).join(""),
    facts: places(tokens.count ? starts.evidence.map(tokenAt) : [], 46),
    looks: places([...attended.keys()], 52),
  };
  svg.setAttribute("viewBox", `0 0 ${bins} 52`);
  svg.replaceChildren(
    ...Object.entries(paths).map(([name, d]) => {
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("class", name);
      path.setAttribute("d", d);
      return path;
    }),
  );
}

function describeOverview() {
  if (!tokens.count) return;
  let best = 0, least = 0, empty = 0;
  const share = (k) => keptIn(tokens.first[k], tokens.first[k + 1]) / Math.max(tokens.first[k + 1] - tokens.first[k], 1);
  for (let k = 0; k < tokens.chunks; k++) {
    if (share(k) > share(best)) best = k;
    if (share(k) < share(least)) least = k;
    if (!share(k)) empty++;
  }
  const message =
    `Share kept of each chunk, first to last: from ${percent(share(least))} to ${percent(share(best))}, most of chunk ${best + 1}` +
    (empty ? `; nothing of ${plural(empty, "chunk")}.` : ".");
  $("overview").setAttribute("aria-label", message);
  $("overview-text").textContent = message;
}

// Events

function documentKeys(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const chunk = currentToken < 0 ? -1 : chunkOf(currentToken);
  const actions = {
    ArrowRight: () => goToToken(Math.min(currentToken + 1, tokens.count - 1)),
    ArrowLeft: () => goToToken(Math.max(currentToken - 1, 0)),
    n: () => goToKept(1),
    p: () => goToKept(-1),
    "]": () => goToChunk(chunk + 1),
    "[": () => goToChunk(chunk - 1),
  };
  const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action || !tokens.count) return;
  event.preventDefault();
  action();
}

function listen() {
  $("document").addEventListener("keydown", documentKeys);
  $("document").addEventListener("pointerover", (event) => {
    const token = event.target.closest?.("[data-token]");
    if (token) tell(+token.dataset.token, false);
  });
  $("document").addEventListener("click", (event) => {
    const token = event.target.closest?.("[data-token]");
    if (token && getSelection().isCollapsed) {
      elementOf(currentToken)?.classList.remove("current");
      currentToken = +token.dataset.token;
      token.classList.add("current");
      tell(currentToken, true);
    }
  });
  $("summary").addEventListener("click", (event) => {
    const token = event.target.closest?.(".token");
    if (token) choose(+token.dataset.written);
  });
  $("summary").addEventListener("keydown", summaryKeys);
  let timer = 0;
  $("query").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(search, 150);
  });
  $("search").addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(timer);
    if (currentHit < 0) search();
    goToHit(1);
  });
  $("hit-back").addEventListener("click", () => goToHit(-1));
  $("go").addEventListener("submit", (event) => {
    event.preventDefault();
    if (tokens.count) goToChunk($("chunk").valueAsNumber - 1 || 0);
  });
  for (const [id, go, step] of [["kept-back", goToKept, -1], ["kept-next", goToKept, 1], ["evidence-back", goToEvidence, -1], ["evidence-next", goToEvidence, 1]]) {
    $(id).addEventListener("click", () => go(step));
  }
  $("overview").addEventListener("click", (event) => {
    const box = $("overview").getBoundingClientRect();
    if (tokens.count) goToChunk(Math.floor(((event.clientX - box.left) / box.width) * tokens.chunks));
  });
}

$("chunk").max = Math.max(tokens.chunks, 1);
for (const id of ["evidence-tools", "evidence-legend"]) $(id).hidden = !spans.evidence.length;
drawSummary();
makeBlocks();
drawOverview();
describeOverview();
listen();
