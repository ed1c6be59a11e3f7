"use strict";
const corpus = {
  points: new Points($("points")), marks: $("marks").getContext("2d"), map: null, colours: [], pixels: [], labels: [],
  view: { x: 0, y: 0, zoom: 1 }, width: 0, height: 0, hits: [], over: -1, lit: -1, area: -1, wanted: 0, asked: 0,
  passages: new Map(), pick: () => {}, light: () => {}, ready: () => {},
};
const MOST_ZOOM = 200;
const STEPS = { reading: "Reading the vectors", placing: "Placing the passages", naming: "Looking for words" };
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const calm = window.matchMedia("(prefers-reduced-motion: reduce)");

function unit() {
  return Math.min(corpus.width, corpus.height) * .46 * corpus.view.zoom;
}

// From a place of the map to one of the screen, and back.
function shownAt(x, y) {
  return [corpus.width / 2 + (x - corpus.view.x) * unit(), corpus.height / 2 - (y - corpus.view.y) * unit()];
}

function placeAt(left, top) {
  return [corpus.view.x + (left - corpus.width / 2) / unit(), corpus.view.y - (top - corpus.height / 2) / unit()];
}

function redraw() {
  if (!corpus.wanted) corpus.wanted = requestAnimationFrame(drawMap);
}

function drawMap() {
  corpus.wanted = 0;
  if (!corpus.map || !corpus.width) return;
  const ratio = corpus.ratio, scale = unit() * ratio, [left, top] = shownAt(0, 0);
  const many = Math.sqrt(corpus.width * corpus.height / corpus.points.count) * .11;
  corpus.radius = Math.min(6, Math.max(corpus.points.count < 3000 ? 2.3 : .8, many) * Math.sqrt(corpus.view.zoom));
  corpus.points.draw(scale, left * ratio, top * ratio, corpus.radius * ratio, corpus.pixels);
  drawMarks();
  placeLabels();
}

function drawMarks() {
  const { marks } = corpus, style = getComputedStyle(document.documentElement);
  const [hit, text, surface] = ["--hit", "--text", "--surface"].map(name => style.getPropertyValue(name));
  marks.setTransform(corpus.ratio, 0, 0, corpus.ratio, 0, 0);
  marks.clearRect(0, 0, corpus.width, corpus.height);
  const ring = (number, radius, colour, thick) => {
    const [x, y] = shownAt(corpus.points.x[number], corpus.points.y[number]);
    marks.beginPath();
    marks.arc(x, y, radius, 0, 2 * Math.PI);
    marks.lineWidth = thick + 2;
    marks.strokeStyle = surface;
    marks.stroke();
    marks.lineWidth = thick;
    marks.strokeStyle = colour;
    marks.stroke();
  };
  for (let rank = corpus.hits.length - 1; rank >= 0; rank--) {
    const number = corpus.hits[rank];
    if (number === null || number === corpus.lit) continue;
    ring(number, Math.max(5, corpus.radius + 2), hit, 2);
  }
  if (corpus.lit >= 0) ring(corpus.lit, Math.max(9, corpus.radius + 4), hit, 4);
  if (corpus.over >= 0) ring(corpus.over, Math.max(6, corpus.radius + 3), text, 2);
}

// A label stands where its area crowds, unless a larger area's is there.
function placeLabels() {
  const taken = [[corpus.width - 60, 0, corpus.width, 158]];
  corpus.labels.forEach(({ node, width, height }, at) => {
    const [x, y] = shownAt(...corpus.map.areas[at].place);
    const box = [x - width / 2 - 3, y - height / 2 - 2, x + width / 2 + 3, y + height / 2 + 2];
    const isFree = width > 0 && box[0] > 0 && box[1] > 0 && box[2] < corpus.width && box[3] < corpus.height
      && (corpus.area < 0 || corpus.area === at)
      && taken.every(other => box[2] <= other[0] || other[2] <= box[0] || box[3] <= other[1] || other[3] <= box[1]);
    node.style.visibility = isFree ? "visible" : "hidden";
    if (!isFree) return;
    taken.push(box);
    node.style.transform = `translate(${Math.round(x - width / 2)}px, ${Math.round(y - height / 2)}px)`;
  });
}

function measure() {
  // A map that is not shown has no size.
  if (!$("map").clientWidth) return;
  [corpus.width, corpus.height] = [$("map").clientWidth, $("map").clientHeight];
  corpus.ratio = Math.min(2, window.devicePixelRatio || 1);
  corpus.points.resize(corpus.width, corpus.height, corpus.ratio);
  $("marks").width = Math.round(corpus.width * corpus.ratio);
  $("marks").height = Math.round(corpus.height * corpus.ratio);
  for (const label of corpus.labels) [label.width, label.height] = [label.node.offsetWidth, label.node.offsetHeight];
  redraw();
}

function paint() {
  if (!corpus.map) return;
  corpus.colours = coloursOf(corpus.map.areas, dark.matches);
  corpus.pixels = corpus.colours.map((colour, at) => pixelOf(colour, corpus.area < 0 || corpus.area === at ? 255 : 50));
  $("areas").querySelectorAll("i").forEach((dot, at) => { dot.style.background = corpus.colours[at]; });
  redraw();
}

function moveTo(view) {
  const from = { ...corpus.view }, start = performance.now();
  const to = { x: Math.min(1, Math.max(-1, view.x)), y: Math.min(1, Math.max(-1, view.y)), zoom: Math.min(MOST_ZOOM, Math.max(.7, view.zoom)) };
  const mine = corpus.move = {};
  if (calm.matches) {
    corpus.view = to;
    return redraw();
  }
  const step = now => {
    if (corpus.move !== mine) return;
    const share = Math.min(1, (now - start) / 260), eased = 1 - (1 - share) ** 3;
    corpus.view = {
      x: from.x + (to.x - from.x) * eased, y: from.y + (to.y - from.y) * eased, zoom: from.zoom * (to.zoom / from.zoom) ** eased,
    };
    redraw();
    if (share < 1) requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
}

function zoomBy(factor, left = corpus.width / 2, top = corpus.height / 2) {
  corpus.move = null;
  const before = placeAt(left, top);
  corpus.view.zoom = Math.min(MOST_ZOOM, Math.max(.7, corpus.view.zoom * factor));
  const after = placeAt(left, top);
  corpus.view.x = Math.min(1.2, Math.max(-1.2, corpus.view.x + before[0] - after[0]));
  corpus.view.y = Math.min(1.2, Math.max(-1.2, corpus.view.y + before[1] - after[1]));
  redraw();
}

function panBy(right, down) {
  corpus.move = null;
  corpus.view.x = Math.min(1.2, Math.max(-1.2, corpus.view.x - right / unit()));
  corpus.view.y = Math.min(1.2, Math.max(-1.2, corpus.view.y + down / unit()));
  redraw();
}

// What a point stands for; what was looked up is kept.
async function passagesOf(numbers) {
  const missing = numbers.filter(number => !corpus.passages.has(number));
  if (missing.length) {
    const { version } = corpus.map;
    const found = await ask("v1/map/passages", { version, numbers: missing });
    if (version !== corpus.map.version) return [];
    if (corpus.passages.size > 2000) corpus.passages.clear();
    missing.forEach((number, at) => corpus.passages.set(number, found.data[at]));
  }
  return numbers.map(number => corpus.passages.get(number)).filter(Boolean);
}

function pointAt(left, top, reach) {
  const near = corpus.points.count ? corpus.points.nearest(...placeAt(left, top), (reach + corpus.radius) / unit()) : -1;
  return near >= 0 && (corpus.area < 0 || corpus.points.areaOf[near] === corpus.area) ? near : -1;
}

function hover(number) {
  if (number === corpus.over) return;
  corpus.over = number;
  $("map").classList.toggle("over", number >= 0);
  $("tip").hidden = true;
  redraw();
  corpus.light(corpus.hits.indexOf(number));
  clearTimeout(corpus.soon);
  if (number < 0) return;
  corpus.soon = setTimeout(async () => {
    const [passage] = await passagesOf([number]).catch(stale);
    if (passage && corpus.over === number) showTip(number, passage);
  }, corpus.passages.has(number) ? 0 : 60);
}

function showTip(number, passage) {
  const tip = $("tip"), [x, y] = shownAt(corpus.points.x[number], corpus.points.y[number]);
  tip.replaceChildren(...summaryOf(passage, 400));
  tip.hidden = false;
  const left = x + 14 + tip.offsetWidth > corpus.width ? x - 14 - tip.offsetWidth : x + 14;
  const top = Math.min(corpus.height - tip.offsetHeight - 4, Math.max(4, y - tip.offsetHeight / 2));
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, top)}px`;
}

function summaryOf(passage, most) {
  return [
    el("b", { textContent: [nameOf(passage), placeOf(passage)].filter(Boolean).join(", ") }),
    el("p", { dir: "auto", textContent: shortened(passage.text, most) }),
  ];
}

function similarTo(passage) {
  const button = el("button", { type: "button", textContent: "Similar passages" });
  button.addEventListener("click", () => corpus.pick(passage));
  return button;
}

// For fingers, and for keys: what was picked stands below the map.
async function showPicked(numbers, heading) {
  const mine = corpus.picking = {};
  const found = await passagesOf(numbers).catch(stale) || [];
  if (corpus.picking !== mine) return;
  const close = el("button", { type: "button", textContent: "Close" });
  close.addEventListener("click", closePicked);
  const parts = found.flatMap((passage, at) => [...summaryOf(passage, heading ? 200 : 1000),
    el("div", {}, similarTo(passage), ...at === found.length - 1 ? [close] : [])]);
  $("picked").replaceChildren(...heading ? [el("h2", { textContent: heading })] : [], ...parts);
  $("picked").hidden = !found.length;
  $("picked").scrollIntoView({ block: "nearest" });
}

function closePicked() {
  $("picked").hidden = true;
  chooseArea(-1);
  hover(-1);
}

function chooseArea(at) {
  corpus.area = at;
  paint();
  $("areas").querySelectorAll("button").forEach((button, number) => button.setAttribute("aria-pressed", number === at));
}

function showArea(at) {
  if (corpus.area === at) return closePicked();
  chooseArea(at);
  const { x, y, areaOf } = corpus.points, across = [], down = [];
  for (let number = 0; number < areaOf.length; number++) {
    if (areaOf[number] === at) {
      across.push(x[number]);
      down.push(y[number]);
    }
  }
  const [width, height] = [across, down].map(values => {
    values.sort((one, other) => one - other);
    return values[Math.floor(values.length * .9)] - values[Math.floor(values.length * .1)];
  });
  const [left, top] = corpus.map.areas[at].place;
  moveTo({ x: left, y: top, zoom: Math.min(12, 1.4 / Math.max(width, height, .05)) });
  showPicked(corpus.map.areas[at].examples.slice(0, 5), corpus.map.areas[at].words.join(", "));
}

function stale(error) {
  if (error.code === "map_changed") loadMap();
}

function bytesOf(text) {
  return Uint8Array.from(atob(text), char => char.charCodeAt(0));
}

function useMap(map) {
  corpus.map = map;
  corpus.passages.clear();
  const places = new DataView(bytesOf(map.places).buffer);
  const numbers = new Uint16Array(places.byteLength / 2);
  for (let at = 0; at < numbers.length; at++) numbers[at] = places.getUint16(2 * at, true);
  corpus.points.set(numbers, bytesOf(map.area_of));
  Object.assign(corpus, { over: -1, lit: -1, area: -1, hits: [] });
  const named = map.areas.map(area => area.words.slice(0, 2).join(" · "));
  corpus.labels = named.map(name => ({ node: el("span", { textContent: name }), width: 0, height: 0 }));
  $("labels").replaceChildren(...corpus.labels.map(label => label.node));
  $("areas").replaceChildren(...map.areas.map((area, at) => {
    const button = el("button", { type: "button" }, el("i"), el("span", { textContent: area.words.join(", ") || "(no words of its own)" }),
      el("small", { textContent: area.rows.toLocaleString("en") }));
    button.addEventListener("click", () => showArea(at));
    return el("li", {}, button);
  }));
  const sample = map.points < map.rows ? `, a sample of ${map.rows.toLocaleString("en")}` : "";
  $("map-about").textContent = map.points
    ? `Near means similar: ${counted(map.points, "passage", "passages")}${sample}. Words are those that tell an area from the others.` : "";
  paint();
  measure();
  corpus.ready();
}

function sayMap(message, done = null) {
  const bar = done === null ? [] : [el("progress", { max: 1, value: done, ariaLabel: message })];
  $("map-status").classList.toggle("middle", !corpus.map);
  $("map-status").replaceChildren(...message ? [el("span", { textContent: message }), ...corpus.map ? [] : bar] : []);
}

// Asked again while it is made; a map that is there stays until the next one is ready.
async function loadMap() {
  clearTimeout(corpus.again);
  const mine = ++corpus.asked;
  try {
    const answer = await ask(`v1/map${corpus.map ? `?known=${corpus.map.version}` : ""}`);
    if (mine !== corpus.asked) return;
    if (answer.map) useMap(answer.map);
    if (answer.state === "making") {
      const step = STEPS[answer.step] || "Making the map";
      sayMap(corpus.map ? "The index has changed; the map is being made anew." : `${step}…`, answer.done);
      corpus.again = setTimeout(loadMap, 1000);
    } else if (answer.state === "failed") {
      sayMap("The map could not be made. The server's log says more.");
    } else {
      sayMap(corpus.map && corpus.map.points ? "" : "There is nothing to show yet.");
    }
  } catch (error) {
    if (mine === corpus.asked && error.status !== 401) {
      sayMap(error.message);
      corpus.again = setTimeout(loadMap, 10000);
    }
  }
}

// Marks what a search has found, as far as it is on the map.
async function markHits(keys) {
  const mine = corpus.marking = {};
  corpus.hits = [];
  corpus.lit = -1;
  redraw();
  if (!corpus.map || !keys.length) return;
  const found = await ask("v1/map/places", { version: corpus.map.version, keys: keys.slice(0, 100) }).catch(stale);
  if (!found || corpus.marking !== mine) return;
  corpus.hits = found.data;
  redraw();
}

function lightHit(rank) {
  const number = rank >= 0 && corpus.hits[rank] !== undefined && corpus.hits[rank] !== null ? corpus.hits[rank] : -1;
  if (number === corpus.lit) return;
  corpus.lit = number;
  redraw();
}
