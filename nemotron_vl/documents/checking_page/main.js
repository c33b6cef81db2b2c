// SPDX-License-Identifier: Apache-2.0
// The list, the bar above it and the keys.
"use strict";

const CHUNK = 100; // rows that the browser leaves out together while they are not seen
const list = byId("list");
const rows = records.map((record, index) => {
  const row = make("div", { className: "page" });
  row.dataset.index = String(index);
  return row;
});

function fill(record, row) {
  const marks = [];
  const mark = (kind, text) => marks.push(make("span", { className: `mark ${kind}` }, text));
  if (isCorrected(record)) mark("corrected", "corrected");
  if (record.error) mark("error", "error");
  if (record.cut) mark("cut", "cut");
  if (record.blank) mark("empty", "blank");
  else if (record.empty) mark("empty", "empty");
  if (record.turned) mark("turned", `\u21bb ${record.turned}\u00b0`);
  if (record.cer !== undefined) mark(record.cer >= DIFFERS ? "differs" : "agrees", percent(record.cer));
  const pages = record.images.map(({ page }) => page);
  const label = pages.length > 1 ? `${pages[0]}\u2013${pages.at(-1)}` : (pages[0] ?? "\u2014");
  const name = make("span", { className: "pages" }, String(label));
  const text = record.error ?? (typeof record.answer === "string" ? record.answer : summary(record));
  const preview = make("span", { className: "preview", dir: "auto" }, text.slice(0, 120));
  row.replaceChildren(name, preview, ...marks);
}

function summary(record) {
  const values = EXPORT.fields.map(({ name }) => valueOf(record, name));
  return values.filter((value) => value !== null && typeof value !== "object").join(" \u00b7 ");
}

function showList() {
  choose();
  const items = [];
  let file = null;
  for (const index of state.listed) {
    const record = records[index];
    if (record.file !== file) {
      file = record.file;
      items.push(make("div", { className: "document", title: file }, make("bdi", {}, file.slice(file.lastIndexOf("/") + 1))));
    }
    items.push(rows[index]);
  }
  const chunks = [];
  for (let start = 0; start < items.length; start += CHUNK) {
    chunks.push(make("li", {}, ...items.slice(start, start + CHUNK)));
  }
  list.replaceChildren(...chunks);
  byId("nothing").hidden = items.length > 0;
}

function show(index) {
  rows[state.current ?? index].removeAttribute("aria-current");
  state.current = index;
  rows[index].setAttribute("aria-current", "true");
  rows[index].scrollIntoView({ block: "nearest" });
  showPages(records[index]);
  showAnswer(records[index]);
  remember();
}

// The next listed record, or the one before; with `wanted` the next that it wants.
function go(step, wanted = () => true) {
  const found = state.listed.indexOf(state.current);
  let place = found < 0 && step < 0 ? 0 : found;
  do place += step;
  while (place in state.listed && !wanted(records[state.listed[place]]));
  if (place in state.listed) show(state.listed[place]);
}

function changed(record) {
  fill(record, rows[records.indexOf(record)]);
  remember();
  showStatus();
}

function showStatus(text) {
  const count = records.filter(isCorrected).length;
  const unsaved = correctionsText() !== state.saved;
  byId("save").textContent = count ? `Save ${count}` : "Save";
  byId("save").disabled = !unsaved;
  byId("status").textContent = unsaved ? "Not saved" : (text ?? "");
  for (const [name, [, keep]] of Object.entries(FILTERS)) {
    byId(`filter-${name}`).lastChild.textContent = String(records.filter(keep).length);
  }
}

function setFilter(name) {
  state.filter = name;
  for (const button of byId("filters").children) {
    button.setAttribute("aria-pressed", String(button.id === `filter-${name}`));
  }
  showList();
  if (state.listed.length && !state.listed.includes(state.current)) show(state.listed[0]);
}

for (const [name, [label]] of Object.entries(FILTERS)) {
  const button = make("button", { type: "button", id: `filter-${name}` }, label, make("span", {}));
  button.onclick = () => setFilter(name);
  byId("filters").append(button);
}
byId("search").oninput = (event) => {
  state.query = event.target.value;
  setFilter(state.filter);
};
byId("sort").onchange = (event) => {
  state.sort = event.target.value;
  showList();
  if (state.listed.length) show(state.listed[0]);
};
byId("save").onclick = save;
byId("show-help").onclick = () => byId("help").showModal();
list.onclick = (event) => {
  const row = event.target.closest(".page");
  if (row) show(Number(row.dataset.index));
};

const KEYS = {
  j: () => go(1),
  ArrowDown: () => go(1),
  ArrowRight: () => go(1),
  k: () => go(-1),
  ArrowUp: () => go(-1),
  ArrowLeft: () => go(-1),
  n: () => go(1, (record) => record.error),
  e: () => panel.querySelector("input, textarea, select")?.focus(),
  r: () => {
    revert(records[state.current]);
    showAnswer(records[state.current]);
  },
  s: save,
  "+": () => zoom(1.25),
  "=": () => zoom(1.25),
  "-": () => zoom(0.8),
  0: () => zoom(null),
  "/": () => byId("search").focus(),
  "?": () => byId("help").showModal(),
};

document.onkeydown = (event) => {
  const saves = event.key === "s" && (event.ctrlKey || event.metaKey);
  const typing = event.target.matches("input, textarea, select");
  if (typing && event.key === "Escape") event.target.blur();
  if (!saves && (typing || event.ctrlKey || event.metaKey || event.altKey || byId("help").open)) return;
  if (!Object.hasOwn(KEYS, event.key)) return;
  event.preventDefault();
  KEYS[event.key]();
};

window.onbeforeunload = (event) => {
  if (!state.kept && correctionsText() !== state.saved) event.preventDefault();
};

recall();
records.forEach((record, index) => fill(record, rows[index]));
const documents = new Set(records.map((record) => record.file)).size;
byId("title").textContent = `${records.length} pages, ${documents} documents`;
const { question, model } = EXPORT.settings;
byId("asked").textContent = [question && `Question: ${question}`, model && `Model: ${model}`].filter(Boolean).join("\n");
if (!records.some((record) => record.cer !== undefined)) byId("sort").hidden = true;
else byId("sort").value = state.sort = "cer";
showStatus();
showList();
show(state.current ?? state.listed[0]);
