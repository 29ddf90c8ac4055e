"use strict";
// What a mark says, under the mouse, under a finger and by the arrow keys.
const tip = document.getElementById("tip");
const said = document.getElementById("said"); // by screen readers
const MARKS = "[data-tip], [data-row]";
let marked = null;

function unmark() {
  if (marked) marked.classList.remove("marked");
  marked = null;
  tip.hidden = true;
}

function words(element) {
  if (element.dataset.tip) return element.dataset.tip;
  const cells = document.getElementById(element.dataset.row).cells;
  return `${cells[0].textContent}. ${cells[cells.length - 1].textContent}`;
}

function mark(element) {
  unmark();
  marked = element;
  element.classList.add("marked");
  tip.textContent = words(element);
  tip.hidden = false;
  place();
}

// Above the mark, or below it where there is no room; always on the screen.
function place() {
  if (!marked) return;
  const mark = marked.getBoundingClientRect();
  const box = tip.getBoundingClientRect();
  const left = Math.min(Math.max(8, mark.left + mark.width / 2 - box.width / 2), window.innerWidth - box.width - 8);
  const above = mark.top - box.height - 10;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${above > 8 ? above : Math.min(mark.bottom + 10, window.innerHeight - box.height - 8)}px`;
}

document.addEventListener("pointerover", (event) => {
  const element = event.target.closest(MARKS);
  if (element) mark(element);
  else if (!event.target.closest("#tip")) unmark();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") unmark();
});
document.addEventListener("scroll", place, { passive: true, capture: true });

for (const figure of document.querySelectorAll("figure[tabindex]")) {
  // several marks may say the same of one layer: the keys come by once
  const marks = [];
  const seen = new Set();
  for (const element of figure.querySelectorAll(MARKS)) {
    if (element.dataset.row && seen.has(element.dataset.row)) continue;
    seen.add(element.dataset.row);
    marks.push(element);
  }
  let at = -1;
  figure.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    if (!marks.length || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (event.key === "Home") at = 0;
    else if (event.key === "End") at = marks.length - 1;
    else if (event.key in steps) at = Math.min(Math.max(0, at + steps[event.key]), marks.length - 1);
    else return;
    event.preventDefault();
    marks[at].scrollIntoView({ block: "nearest", inline: "nearest" });
    mark(marks[at]);
    said.textContent = tip.textContent;
  });
  figure.addEventListener("blur", unmark);
}

// On paper everything is open.
let opened = [];
window.addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const details of opened) details.open = true;
});
window.addEventListener("afterprint", () => {
  for (const details of opened) details.open = false;
});
