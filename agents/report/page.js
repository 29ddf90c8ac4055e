"use strict";
// What a mark says, under the mouse, under a finger and by the arrow keys.
const tip = document.getElementById("tip");
let marked = null;

function unmark() {
  if (marked) marked.classList.remove("marked");
  marked = null;
  tip.hidden = true;
}

function mark(element) {
  unmark();
  marked = element;
  element.classList.add("marked");
  tip.textContent = element.dataset.tip;
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
  const element = event.target.closest("[data-tip]");
  if (element) mark(element);
  else if (!event.target.closest("#tip")) unmark();
});
document.addEventListener("scroll", place, { passive: true, capture: true });

for (const figure of document.querySelectorAll("figure[tabindex]")) {
  const marks = [...figure.querySelectorAll("[data-tip]")];
  let at = -1;
  figure.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    if (event.key === "Escape") unmark();
    else if (event.key === "Home") at = 0;
    else if (event.key === "End") at = marks.length - 1;
    else if (event.key in steps) at = Math.min(Math.max(0, at + steps[event.key]), marks.length - 1);
    else return;
    event.preventDefault();
    if (event.key === "Escape" || !marks.length) return;
    marks[at].scrollIntoView({ block: "nearest", inline: "nearest" });
    mark(marks[at]);
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
