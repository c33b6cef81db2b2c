// SPDX-License-Identifier: Apache-2.0
// The answer of a record: fields of the schema, or a text.
"use strict";

const panel = byId("answer");

function showAnswer(record) {
  const slash = record.file.lastIndexOf("/") + 1;
  const folder = make("span", { className: "folder" }, record.file.slice(0, slash));
  panel.replaceChildren(
    make("h2", { title: record.file }, make("bdi", {}, record.file.slice(slash)), folder),
    ...remarks(record),
    ...(isForm(record) ? form(record) : whole(record)),
    ...ownTexts(record),
  );
  panel.scrollTo(0, 0);
}

function remarks(record) {
  const found = [];
  const add = (kind, title, text) =>
    found.push(make("p", { className: `remark ${kind}` }, make("strong", {}, title), make("span", {}, text)));
  if (record.error) add("error", "Error", record.error);
  if (record.cut) add("cut", "Cut", record.cut);
  if (record.blank) add("empty", "Blank", "The page is blank. It was not asked.");
  else if (record.empty) add("empty", "Empty", "The answer says nothing.");
  if (record.cer >= DIFFERS) {
    add("differs", "Differs", `${percent(record.cer)} of the characters differ from the PDF's own text.`);
  }
  if (record.turned) add("turned", "Turned", `The page was turned by ${record.turned}\u00b0 before it was asked.`);
  if (record.found) add("turned", "Found", record.found);
  if (record.copy_of) add("turned", "Copy", `The document equals ${record.copy_of}, which was asked.`);
  return found;
}

function percent(rate) {
  return `${(100 * rate).toFixed(rate < 0.1 ? 1 : 0)} %`;
}

function form(record) {
  const parts = EXPORT.fields.map((field) => part(record, field));
  if (typeof record.answer === "string" && record.answer) {
    parts.unshift(original("The model's answer", record.answer));
  }
  return parts;
}

// A field with its label, and the model's value below it once it is changed.
function part(record, field) {
  const { name, kind, nullable, choices, description } = field;
  const old = own(record.answer, name);
  const note = make("div", { className: "note", hidden: true });
  const element = make("div", { className: "field" });
  const build = () => {
    const input = inputFor(kind, valueOf(record, name), write, { nullable, choices });
    const tag = input.matches("table") ? "div" : "label";
    const label = make(tag, { title: description }, make("span", {}, name), input);
    element.replaceChildren(label, note);
    update();
  };
  const update = () => {
    const changed = record.edits.has(name);
    element.classList.toggle("changed", changed);
    note.hidden = !changed;
    if (!changed) return;
    const undo = make("button", { type: "button" }, "Revert");
    undo.onclick = () => {
      setValue(record, name, old);
      build();
    };
    note.replaceChildren(make("del", {}, old === null ? "\u2014" : shown(old)), undo);
  };
  const write = (value) => {
    setValue(record, name, value);
    update();
  };
  build();
  return element;
}

function whole(record) {
  const old = record.answer ?? "";
  const isText = typeof old === "string";
  const note = make("div", { className: "note" });
  const element = make("div", { className: "field whole" });
  const update = () => {
    const changed = record.whole !== undefined;
    element.classList.toggle("changed", changed);
    note.hidden = !changed;
    if (!changed || note.hasChildNodes()) return;
    const undo = make("button", { type: "button" }, "Revert");
    undo.onclick = () => {
      revert(record);
      showAnswer(record);
    };
    note.append(original("The model's answer", isText ? old : json(old)), undo);
  };
  const write = (value) => {
    setWhole(record, value);
    update();
  };
  const area = inputFor(isText ? "text" : "json", record.whole ?? old, write, { nullable: false });
  area.setAttribute("aria-label", "Answer");
  element.append(area, note);
  update();
  return [element];
}

function original(title, text) {
  return make("details", { open: true }, make("summary", {}, title), make("pre", { dir: "auto" }, text));
}

function ownTexts(record) {
  return record.images
    .filter(({ text }) => text?.trim())
    .map(({ page, text }) => {
      const details = original(`The PDF's own text of page ${page}`, text);
      details.open = record.cer >= DIFFERS;
      return details;
    });
}
