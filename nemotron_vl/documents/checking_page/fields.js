// SPDX-License-Identifier: Apache-2.0
// Inputs for values, by their type in the schema.
"use strict";

const LONG = 48; // characters, from which a text has an area instead of a line
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;

// An input for a value.
//   kind: of `Field` in fields.py
//   write: is called with each value that is typed
function inputFor(kind, value, write, { nullable = true, choices = null } = {}) {
  if (kind === "boolean" || choices) return chooser(choices ?? [true, false], value, nullable, write);
  if (kind === "json" && isTable(value)) return table(value, write);
  const [show, read] = TYPES[kind === "json" && typeof value === "string" ? "string" : kind];
  const text = show(value);
  const long = kind === "json" || kind === "text" || text.length > LONG || text.includes("\n");
  const input = make(long ? "textarea" : "input", { value: text, spellcheck: false, dir: "auto" });
  if (long) input.rows = Math.min(12, text.split("\n").length);
  if (kind === "json") input.className = "json";
  input.oninput = () => {
    let typed = null;
    try {
      if (input.value.trim() || (!nullable && (kind === "string" || kind === "text"))) typed = read(input.value);
      else if (!nullable) throw new Error("A value is needed.");
      input.setCustomValidity("");
    } catch (error) {
      input.setCustomValidity(error.message);
    }
    input.title = input.validationMessage;
    if (input.validity.valid) write(typed);
  };
  return input;
}

const json = (value) => JSON.stringify(value, null, 1) ?? "";
const shown = (value) => (value === null ? "" : typeof value === "string" ? value : JSON.stringify(value));
const TYPES = {
  string: [shown, (text) => text],
  text: [shown, (text) => text],
  number: [shown, (text) => number(text)],
  integer: [
    shown,
    (text) => {
      if (!Number.isSafeInteger(number(text))) throw new Error("This is not a whole number.");
      return number(text);
    },
  ],
  json: [
    (value) => (value === null ? "" : json(value)),
    (text) => {
      try {
        return JSON.parse(text);
      } catch {
        throw new Error("This is not JSON.");
      }
    },
  ],
};

function number(text) {
  const value = Number(text);
  if (!NUMBER.test(text.trim()) || !Number.isFinite(value)) throw new Error("This is not a number such as -12.5.");
  return value;
}

function chooser(choices, value, nullable, write) {
  const values = [...choices];
  for (const other of nullable ? [value, null] : [value]) {
    if (!values.some((choice) => same(choice, other))) values.push(other);
  }
  const options = values.map((choice, index) => {
    const text = choice === null ? "\u2014" : shown(choice);
    return make("option", { value: String(index), selected: same(choice, value) }, text);
  });
  const input = make("select", {}, ...options);
  input.onchange = () => write(values[Number(input.value)]);
  return input;
}

// Whether a value is a list of objects of simple values, such as the items of an invoice.
function isTable(value) {
  const simple = (cell) => cell === null || typeof cell !== "object";
  return Array.isArray(value) && value.length > 0 && value.every((row) => isObject(row) && Object.values(row).every(simple));
}

function table(value, write) {
  const names = [...new Set(value.flatMap((row) => Object.keys(row)))];
  let rows = value;
  const kindOf = (cell) => (typeof cell === "boolean" || typeof cell === "number" ? typeof cell : "string");
  const cell = (index, name) => {
    const old = own(value[index], name);
    const kind = kindOf(old);
    const input = inputFor(kind, old, (typed) => {
      const entries = Object.entries(rows[index]).filter(([key]) => key !== name);
      const order = (entry) => names.indexOf(entry[0]);
      entries.push([name, typed]);
      entries.sort((one, other) => order(one) - order(other));
      rows = rows.with(index, Object.fromEntries(entries));
      write(rows);
    });
    input.setAttribute("aria-label", `${name}, row ${index + 1}`);
    return make("td", { className: kind }, input);
  };
  const head = make("tr", {}, ...names.map((name) => make("th", { className: kindOf(own(value[0], name)) }, name)));
  const body = value.map((_, index) => make("tr", {}, ...names.map((name) => cell(index, name))));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
}
