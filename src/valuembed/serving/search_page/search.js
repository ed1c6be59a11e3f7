"use strict";
// What is asked stands behind the # of the address, which a browser keeps to itself.
const PLAIN = { q: "", like: "", where: "", hybrid: null, k: 10 };
const finding = { asked: 0, abort: null, state: { ...PLAIN }, shown: [], chosen: -1, lasted: 0, index: null };

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1)), k = Number.parseInt(given.get("k"), 10);
  return {
    q: given.get("q") || "", like: given.get("like") || "", where: given.get("where") || "",
    hybrid: { 0: false, 1: true }[given.get("hybrid")] ?? null, k: k > 0 ? k : PLAIN.k,
  };
}

// Where nothing is said, the index decides.
function byWords(state) {
  return !state.like && (state.hybrid ?? Boolean(finding.index && finding.index.hybrid));
}

function addressOf(state) {
  const given = new URLSearchParams();
  if (state.like) given.set("like", state.like);
  else if (state.q) given.set("q", state.q);
  if (state.where) given.set("where", state.where);
  if (state.hybrid !== null) given.set("hybrid", state.hybrid ? "1" : "0");
  if (state.k !== PLAIN.k) given.set("k", state.k);
  const text = given.toString();
  return text ? `#${text}` : location.pathname;
}

function readFields() {
  const k = Math.round(Number($("k").value));
  return { q: $("query").value.trim(), like: "", where: $("where").value.trim(), hybrid: $("hybrid").checked === byWords(PLAIN) ? null : $("hybrid").checked, k: k > 0 ? k : PLAIN.k };
}

function showState(state) {
  const fields = [["query", state.q], ["where", state.where], ["k", state.k]];
  // What is being written is left alone.
  for (const [id, value] of fields) if ($(id).value.trim() !== String(value)) $(id).value = value;
  $("hybrid").checked = byWords({ ...state, like: "" });
  const told = [state.where && "filtered", byWords(state) && "also by words", state.k !== PLAIN.k && counted(state.k, "result", "results")];
  $("options-told").textContent = told.filter(Boolean).map(word => ` · ${word}`).join("");
  document.title = state.like ? "Similar passages" : state.q ? `${shortened(state.q, 60)} – Search` : "Search";
}

// A new entry of the history for each question; while one is written, its entry is written over.
function go(state, { written = false, about = null } = {}) {
  const entry = { about, written };
  const replace = addressOf(state) === addressOf(finding.state) || (history.state && history.state.written && !state.like);
  history[replace ? "replaceState" : "pushState"](entry, "", addressOf(state));
  run(state);
}

function say(message, bad = false) {
  $("status").textContent = message;
  $("status").classList.toggle("bad", bad);
}

function wrongFilter(message) {
  $("where-wrong").textContent = message;
  $("where").setAttribute("aria-invalid", message ? "true" : "false");
  if (message) $("options").open = true;
}

// A later question ends the one before; an answer that is late is dropped.
async function run(state, focus = false) {
  const mine = ++finding.asked;
  if (finding.abort) finding.abort.abort();
  finding.abort = new AbortController();
  finding.state = state;
  showState(state);
  if (!state.q && !state.like) {
    document.body.classList.remove("busy");
    wrongFilter("");
    return showNothingAsked();
  }
  document.body.classList.add("busy");
  $("results").setAttribute("aria-busy", "true");
  const begin = performance.now();
  try {
    const body = { ...state.like ? { like: state.like } : { query: state.q }, k: state.k };
    if (state.where) body.where = state.where;
    if (state.hybrid !== null && !state.like) body.hybrid = state.hybrid;
    const answer = await ask("v1/search", body, finding.abort.signal);
    if (mine !== finding.asked) return;
    finding.lasted = performance.now() - begin;
    wrongFilter("");
    show(state, answer.data);
    if (focus && finding.shown.length) choose(0);
  } catch (error) {
    if (mine !== finding.asked || error.name === "AbortError") return;
    show(state, null);
    const isFilter = state.where && /filter|condition/.test(`${error.message} ${error.param}`);
    wrongFilter(isFilter ? `${error.message[0].toUpperCase()}${error.message.slice(1)}.`.replace(/\.\.$/, ".") : "");
    say(isFilter ? "The filter cannot be applied." : error.code === "not_found" ? "That passage is no longer in the index." : error.message, true);
  } finally {
    if (mine === finding.asked) {
      document.body.classList.remove("busy");
      $("results").removeAttribute("aria-busy");
    }
  }
}

function showNothingAsked() {
  finding.shown = [];
  finding.chosen = -1;
  $("hits").replaceChildren();
  $("about").hidden = true;
  say("");
  markHits([]);
  const { index } = finding;
  if (!index) return;
  const parts = [];
  if (!index.rows) {
    parts.push(el("p", { textContent: "The index is empty. Fill it with: valuembed index SOURCE -o INDEX" }));
  } else {
    const what = index.sources.length ? ` from ${index.sources.slice(0, 5).join(", ")}${index.sources.length > 5 ? ` and ${index.sources.length - 5} more` : ""}` : "";
    parts.push(el("p", { textContent: `${counted(index.rows, "passage", "passages")}${what}. Ask in your own words; what is close in meaning comes first.` }));
    const areas = corpus.map ? corpus.map.areas.filter(area => area.words.length > 1).slice(0, 8) : [];
    if (areas.length) {
      parts.push(el("p", { className: "quiet", textContent: "What it is about, to begin with:" }), el("ul", {}, ...areas.map(area => {
        const words = area.words.slice(0, 3).join(" "), button = el("button", { type: "button", textContent: words });
        button.addEventListener("click", () => go({ ...finding.state, q: words, like: "" }));
        return el("li", {}, button);
      })));
    }
  }
  $("empty").hidden = false;
  $("empty").replaceChildren(...parts);
}

function show(state, hits) {
  finding.shown = hits || [];
  finding.chosen = -1;
  $("empty").hidden = true;
  showAbout(state);
  $("hits").replaceChildren(...finding.shown.map(hitOf));
  for (const node of $("hits").children) {
    const passage = node.querySelector(".passage");
    node.querySelector(".whole").hidden = passage.scrollHeight <= passage.clientHeight + 2;
  }
  markHits(finding.shown.map(hit => hit.key));
  if (hits === null) return;
  if (!hits.length) {
    say("Nothing found.");
    $("empty").hidden = false;
    $("empty").replaceChildren(el("p", { textContent: state.where ? "The filter leaves no passages. Change it, or take it away." : "The index has no passages." }));
    if (state.where) {
      const button = el("button", { type: "button", textContent: "Search without the filter" });
      button.addEventListener("click", () => go({ ...state, where: "" }));
      $("empty").append(el("ul", {}, el("li", {}, button)));
    }
    return;
  }
  const how = byWords(state) ? ", by meaning and words" : "";
  say(`${counted(hits.length, "passage", "passages")}${how}${state.where ? ", filtered" : ""}, best first.`);
}

function showAbout(state) {
  $("about").hidden = !state.like;
  if (!state.like) return;
  const known = history.state && history.state.about;
  const back = el("button", { type: "button", textContent: "Back" });
  back.addEventListener("click", leaveSimilar);
  const what = el("p", {}, el("b", { textContent: known ? `Similar to ${known.name}: ` : "Similar to a passage." }),
    ...known ? [el("span", { dir: "auto", textContent: known.text })] : []);
  $("about").replaceChildren(what, back);
}

function leaveSimilar() {
  if (history.state && history.state.about) history.back();
  else go({ ...finding.state, like: "", q: "" });
}

function similar(hit) {
  const name = [nameOf(hit), placeOf(hit)].filter(Boolean).join(", ");
  const about = { name: shortened(name, 120), text: shortened(hit.text, 160) };
  const state = { ...finding.state, q: "", like: hit.key };
  history.pushState({ about, written: false }, "", addressOf(state));
  seeMap(false);
  window.scrollTo(0, 0);
  run(state, true);
}

// Places come in characters, of which some are two units of a string here.
function marked(text, words, isShort) {
  const parts = /[\ud800-\udfff]/.test(text) ? Array.from(text) : null;
  const whole = (from, to) => parts ? parts.slice(from, to).join("") : text.slice(from, to);
  // Of the few lines of a short one, none is spent on nothing.
  const cut = (from, to) => isShort ? whole(from, to).replace(/\n\s*\n/g, "\n") : whole(from, to);
  const nodes = [];
  let at = 0;
  for (const [start, end] of words) {
    if (start > at) nodes.push(cut(at, start));
    nodes.push(el("mark", { textContent: cut(start, end) }));
    at = end;
  }
  nodes.push(cut(at));
  return nodes;
}

function hitOf(hit, at) {
  const item = el("li", { className: "hit", tabIndex: at ? -1 : 0 });
  const where = placeOf(hit), name = nameOf(hit);
  item.setAttribute("aria-label", `${at + 1}: ${[name, where].filter(Boolean).join(", ")}`);
  const file = el("span", { className: "file" }, el("bdi", { textContent: name }));
  if (where) file.append(" ", el("span", { className: "at", textContent: where }));
  const score = el("span", { className: "score", textContent: hit.score.toFixed(2), title: "Cosine similarity" });
  item.append(el("div", { className: "place" }, el("span", { className: "number", textContent: at + 1 }), file, score));
  const trail = [hit.title, ...(hit.headings || "").split(" > ")].filter((part, number, all) => part && part !== name && all.indexOf(part) === number);
  if (trail.length) item.append(el("p", { className: "trail", dir: "auto", textContent: trail.join(" › ") }));
  const passage = el("p", { className: "passage short", dir: "auto" }, ...marked(hit.text, hit.words, true));
  const whole = el("button", { type: "button", className: "whole", textContent: "Whole passage" });
  whole.setAttribute("aria-expanded", "false");
  whole.addEventListener("click", () => {
    const isShort = passage.classList.toggle("short");
    passage.replaceChildren(...marked(hit.text, hit.words, isShort));
    whole.textContent = isShort ? "Whole passage" : "Less";
    whole.setAttribute("aria-expanded", String(!isShort));
  });
  const alike = el("button", { type: "button", className: "alike", textContent: "Similar passages" });
  alike.addEventListener("click", () => similar(hit));
  item.append(passage);
  const more = Object.entries(hit.more).filter(([, value]) => value !== null);
  if (more.length) item.append(el("p", { className: "more", textContent: more.map(([column, value]) => `${column}: ${value}`).join(" · ") }));
  item.append(el("div", { className: "acts" }, whole, alike));
  item.addEventListener("focusin", () => note(at));
  item.addEventListener("mouseenter", () => lightHit(at));
  item.addEventListener("mouseleave", () => lightHit(finding.chosen));
  return item;
}

function note(at) {
  finding.chosen = at;
  [...$("hits").children].forEach((node, number) => { node.tabIndex = number === at ? 0 : -1; });
  lightHit(at);
}

function choose(at) {
  const node = $("hits").children[at];
  if (!node) return;
  node.focus({ preventScroll: true });
  node.scrollIntoView({ block: "nearest" });
}

function seeMap(isMap) {
  document.body.classList.toggle("on-map", isMap);
  $("show-map").setAttribute("aria-pressed", String(isMap));
  $("show-results").setAttribute("aria-pressed", String(!isMap));
}

async function learn() {
  try {
    finding.index = await ask("v1/index");
    showState(finding.state);
  } catch (error) {
    if (error.status !== 401) say(error.message, true);
    return;
  }
  const { index } = finding;
  $("columns").replaceChildren(...Object.entries(index.columns).map(([name, kind]) => {
    const button = el("button", { type: "button" }, `${name} `, el("small", { textContent: kind }));
    button.addEventListener("click", () => {
      const field = $("where"), written = /^[a-z_]\w*$/i.test(name) && name !== "end" ? name : `"${name.replaceAll('"', '""')}"`;
      field.setRangeText(written, field.selectionStart, field.selectionEnd, "end");
      field.focus();
    });
    return el("li", {}, button);
  }));
  $("index-about").textContent = `${counted(index.rows, "passage", "passages")}, ${index.model}, ${index.method}. Queries go to this server only. `;
  run(readAddress());
  loadMap();
}

$("search-form").addEventListener("submit", event => {
  event.preventDefault();
  clearTimeout(finding.soon);
  go(readFields());
  if (document.activeElement === $("query") && window.matchMedia("(pointer: coarse)").matches) $("query").blur();
});
$("query").addEventListener("input", () => {
  clearTimeout(finding.soon);
  const state = readFields();
  // Where an answer takes long, only Enter asks.
  if (finding.lasted > 1000 || (state.q && state.q.length < 2)) return;
  finding.soon = setTimeout(() => go(state, { written: true }), state.q ? 300 : 0);
});
for (const id of ["hybrid", "k", "where"]) $(id).addEventListener("change", () => go({ ...readFields(), like: finding.state.like }));
window.addEventListener("popstate", () => run(readAddress()));
$("show-results").addEventListener("click", () => seeMap(false));
$("show-map").addEventListener("click", () => seeMap(true));

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const at = event.target, isField = at.matches("input:not([type=checkbox])"), hit = at.closest(".hit"), last = finding.shown.length - 1;
  const does = event.key === "/" && !isField ? () => $("query").select()
    : event.key === "Escape" && hit ? () => finding.state.like ? leaveSimilar() : $("query").focus()
    : event.key === "Escape" && !$("picked").hidden ? closePicked
    : event.key === "Escape" && at === $("query") && finding.state.like ? leaveSimilar
    : event.key === "ArrowDown" && at === $("query") && last >= 0 ? () => choose(Math.max(0, finding.chosen))
    : !isField && (event.key === "j" || (event.key === "ArrowDown" && hit)) ? () => choose(Math.min(last, hit ? finding.chosen + 1 : Math.max(0, finding.chosen)))
    : hit && (event.key === "k" || event.key === "ArrowUp") ? () => finding.chosen > 0 ? choose(finding.chosen - 1) : $("query").focus()
    : at === hit && hit && event.key === "Enter" ? () => hit.querySelector(".whole").click()
    : hit && event.key === "s" ? () => hit.querySelector(".alike").click()
    : null;
  if (!does) return;
  event.preventDefault();
  does();
});

Object.assign(corpus, {
  pick: similar,
  light: rank => [...$("hits").children].forEach((node, at) => node.classList.toggle("on-map", at === rank)),
  ready: () => {
    if (finding.shown.length) markHits(finding.shown.map(hit => hit.key));
    else if (!finding.state.q && !finding.state.like) showNothingAsked();
  },
});
unlocked.push(learn);
learn();
if (window.matchMedia("(pointer: fine)").matches) $("query").focus();
