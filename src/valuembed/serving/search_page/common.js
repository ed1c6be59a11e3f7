"use strict";
const $ = id => document.getElementById(id);
const graphemes = window.Intl && Intl.Segmenter ? new Intl.Segmenter() : null;
const unlocked = [];
let key = null;

// Texts of others enter the page as text only.
function el(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function shortened(text, most) {
  const head = text.slice(0, most * 12);
  const parts = graphemes ? Array.from(graphemes.segment(head), part => part.segment) : Array.from(head);
  return parts.length > most || head.length < text.length ? `${parts.slice(0, most - 1).join("").trimEnd()}…` : text;
}

function counted(count, one, many) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

// Answers of the server, and its errors in words; an error has the status, the code and the field that is wrong.
async function ask(path, body, signal) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  if (key !== null) headers.Authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(path, {
      method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal, credentials: "omit",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Try again.");
  }
  const found = await answer.json().catch(error => {
    if (error.name === "AbortError") throw error;
    return null;
  });
  if (answer.ok && found) return found;
  if (answer.status === 401) needKey();
  const told = found && found.error;
  const error = new Error(told ? told.message : `The server answered with status ${answer.status}.`);
  throw Object.assign(error, { status: answer.status, code: told && told.code, param: told && told.param });
}

function needKey() {
  $("key-form").hidden = false;
  $("key-status").textContent = key === null ? "" : "This key does not open the server.";
  key = null;
  $("key").value = "";
  $("key").focus();
}

$("key-form").addEventListener("submit", event => {
  event.preventDefault();
  const given = $("key").value.trim();
  key = given;
  if (/[^\x20-\x7e]/.test(given)) return needKey();
  ask("v1/index").then(() => {
    $("key-form").hidden = true;
    for (const begin of unlocked) begin();
  }, error => {
    if (!$("key-status").textContent) $("key-status").textContent = error.message;
  });
});

// Where a passage stands, as people say it.
function placeOf(hit) {
  if (hit.page !== null) return `page ${hit.page.toLocaleString("en")}`;
  if (hit.line !== null) return `line ${hit.line.toLocaleString("en")}`;
  return hit.row !== null ? `row ${hit.row.toLocaleString("en")}` : "";
}

function nameOf(hit) {
  return hit.file || hit.title || hit.source || `row ${hit.id}`;
}
