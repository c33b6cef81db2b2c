// SPDX-License-Identifier: Apache-2.0
// The images of a record's pages.
"use strict";

const paper = byId("paper");
const view = { scale: null }; // null: fit

function showPages(record) {
  const pages = record.images.map(({ page, image, error }) =>
    image
      ? make("img", { src: image, alt: `Page ${page}`, draggable: false, onload: rescale })
      : make("p", { className: "placeholder" }, make("strong", {}, `Page ${page} is not shown.`), error),
  );
  if (pages.length === 0) {
    pages.push(make("p", { className: "placeholder" }, make("strong", {}, "There is no page.")));
  }
  paper.replaceChildren(...pages);
  rescale();
  paper.scrollTo(0, 0);
}

function rescale() {
  paper.classList.toggle("fit", view.scale === null);
  for (const image of paper.querySelectorAll("img")) {
    image.style.width = view.scale === null ? "" : `${image.naturalWidth * view.scale}px`;
  }
}

// Zooms about the middle of what is seen. A factor of `null` fits the page.
function zoom(factor) {
  const image = paper.querySelector("img");
  if (!image) return;
  const [x, y] = [
    (paper.scrollLeft + paper.clientWidth / 2) / paper.scrollWidth,
    (paper.scrollTop + paper.clientHeight / 2) / paper.scrollHeight,
  ];
  const scale = image.clientWidth / image.naturalWidth;
  view.scale = factor === null ? null : Math.min(4, Math.max(0.1, scale * factor));
  rescale();
  paper.scrollTo(
    x * paper.scrollWidth - paper.clientWidth / 2,
    y * paper.scrollHeight - paper.clientHeight / 2,
  );
}

byId("zoom-in").onclick = () => zoom(1.25);
byId("zoom-out").onclick = () => zoom(0.8);
byId("zoom-fit").onclick = () => zoom(null);

paper.onpointerdown = (event) => {
  if (event.pointerType === "mouse" && event.button === 0) paper.setPointerCapture(event.pointerId);
};
paper.onpointermove = (event) => {
  if (paper.hasPointerCapture(event.pointerId)) paper.scrollBy(-event.movementX, -event.movementY);
};
