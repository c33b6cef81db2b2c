// SPDX-License-Identifier: Apache-2.0
// The records, their corrections, and which of them are listed.
"use strict";

const DIFFERS = 0.05; // character error rate from which a page counts as different
const STORE = `nemotron-vl:${EXPORT.id}`;
const records = EXPORT.records;

const FILTERS = {
  all: ["All", () => true],
  error: ["Errors", (record) => record.error],
  cut: ["Cut", (record) => record.cut],
  empty: ["Empty", (record) => record.empty],
  differs: ["Differ", (record) => record.cer >= DIFFERS],
  corrected: ["Corrected", (record) => isCorrected(record)],
};

const state = { current: null, filter: "all", query: "", sort: "document", listed: [], saved: "" };

const byId = (id) => document.getElementById(id);

// An element. Texts of records are always text nodes or values, never HTML.
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const own = (object, key) => (isObject(object) && Object.hasOwn(object, key) ? object[key] : null);
const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

// A record's correction is `whole`, another answer, or `edits`, other values of fields.
for (const record of records) load(record, record.correction);

function load(record, correction) {
  record.whole = correction?.answer;
  record.edits = new Map(Object.entries(correction?.fields ?? {}));
}

function isCorrected(record) {
  return record.whole !== undefined || record.edits.size > 0;
}

// Whether the answer is shown as fields.
function isForm(record) {
  if (EXPORT.fields.length === 0 || Array.isArray(record.answer)) return false;
  return typeof record.answer !== "string" || record.answer === "" || Boolean(record.error);
}

function valueOf(record, name) {
  return record.edits.has(name) ? record.edits.get(name) : own(record.answer, name);
}

function setValue(record, name, value) {
  if (same(value, own(record.answer, name))) record.edits.delete(name);
  else record.edits.set(name, value);
  changed(record);
}

function setWhole(record, value) {
  record.whole = same(value, record.answer ?? "") ? undefined : value;
  changed(record);
}

function revert(record) {
  load(record, null);
  changed(record);
}

function correctionOf(record) {
  const { file, page } = record;
  const place = { file, page, answer_sha256: record.digest };
  if (record.whole !== undefined) return { ...place, answer: record.whole };
  // Without data of the model all fields are given, so that the data is complete.
  const names = isObject(record.answer) ? [...record.edits.keys()] : EXPORT.fields.map((f) => f.name);
  return { ...place, fields: Object.fromEntries(names.map((name) => [name, valueOf(record, name)])) };
}

function correctionsText() {
  return records
    .filter(isCorrected)
    .map((record) => JSON.stringify(correctionOf(record)) + "\n")
    .join("");
}

// What is not saved to a file survives in the browser's storage, if it has one.
function remember() {
  const corrections = records.flatMap((record, index) =>
    isCorrected(record) ? [[index, { answer: record.whole, fields: Object.fromEntries(record.edits) }]] : [],
  );
  try {
    localStorage.setItem(STORE, JSON.stringify({ corrections, current: state.current, saved: state.saved }));
    state.kept = true;
  } catch {
    state.kept = false;
  }
}

function recall() {
  state.saved = correctionsText();
  try {
    const kept = JSON.parse(localStorage.getItem(STORE));
    if (!kept) return;
    for (const record of records) load(record, null);
    for (const [index, correction] of kept.corrections) load(records[index], correction);
    state.current = Math.min(kept.current, records.length - 1);
    state.saved = kept.saved;
  } catch {
    // Storage is switched off, or holds something else.
  }
}

function searched(record) {
  record.text ??= `${record.file}\n${JSON.stringify(record.answer)}\n${record.error ?? ""}`.toLowerCase();
  return record.text;
}

// Indices of the records that filter and search leave, in their order.
function choose() {
  const query = state.query.toLowerCase();
  const [, keep] = FILTERS[state.filter];
  state.listed = [...records.keys()].filter(
    (index) => keep(records[index]) && (!query || searched(records[index]).includes(query)),
  );
  if (state.sort === "cer") {
    const cer = (index) => records[index].cer ?? -1;
    state.listed.sort((one, other) => cer(other) - cer(one) || one - other);
  }
}

async function save() {
  const text = correctionsText();
  const download = () => {
    const url = URL.createObjectURL(new Blob([text], { type: "application/jsonl" }));
    make("a", { href: url, download: "corrections.jsonl" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  };
  try {
    if (!window.showSaveFilePicker) download();
    else {
      state.file ??= await window.showSaveFilePicker({ suggestedName: "corrections.jsonl" });
      const writer = await state.file.createWritable();
      await writer.write(text);
      await writer.close();
    }
  } catch (error) {
    if (error.name === "AbortError") return;
    state.file = undefined;
    download();
  }
  state.saved = text;
  remember();
  showStatus("Saved.");
}
