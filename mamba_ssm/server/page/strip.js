// The book as a strip: where the passages lie, and how well each part of it fits the question.

import { draw, make } from "./dom.js";
import { place } from "./words.js";

const GAP = 24; // pixels between the middles of two pins
const STEPS = 40; // of the band, by arrow key

/** Where pins go so that none covers another, as near as may be to where they belong. `wanted` is in order. */
function apart(wanted, width) {
  const gap = Math.min(GAP, width / wanted.length);
  const xs = [];
  for (const x of wanted) xs.push(Math.max(x, xs.length ? xs[xs.length - 1] + gap : gap / 2));
  let limit = width - gap / 2;
  for (let i = xs.length - 1; i >= 0; i--) {
    xs[i] = Math.min(xs[i], limit);
    limit = xs[i] - gap;
  }
  return xs;
}

/**
 * The strip of one answer. `open(passage)` is called with what is chosen: a passage of the evidence, or a place of the
 * band. Returns the node, `heat(windows)` that paints the band, and `here(start)` that shows what is open.
 */
export function strip(book, evidence, cited, open) {
  const characters = book.characters;
  const pins = make("div", { class: "pins" });
  const leaders = draw("svg", { class: "leaders", "aria-hidden": "true" });
  const picture = draw("svg", { preserveAspectRatio: "none", "aria-hidden": "true" });
  const needle = make("span", { class: "here", hidden: true });
  const under = make("span", { class: "under" });
  const band = make("div", {
    class: "band", role: "slider", tabindex: "0", "aria-label": "Place in the book",
    "aria-valuemin": "0", "aria-valuemax": "100", "aria-valuenow": "0", "aria-valuetext": "the beginning",
  }, picture, needle);
  const node = make("div", { class: "strip", role: "group", "aria-label": "Where in the book" }, pins, leaders, band,
    make("div", { class: "legend" }, make("span", {}, "the deeper the colour, the better it fits the question"), under));

  let windows = [];
  const sorted = evidence.map((passage, index) => ({ passage, number: index + 1 })).sort((a, b) => a.passage.start - b.passage.start);
  for (const { passage, number } of sorted) {
    pins.append(make("button", {
      type: "button", class: cited.includes(passage) ? "pin cited" : "pin", "data-number": number,
      "aria-label": `Passage ${number}, ${place(passage, characters)}`, onclick: () => open(passage, number),
    }, String(number)));
  }

  new ResizeObserver(() => {
    const width = pins.clientWidth;
    if (!width) return;
    const wanted = sorted.map(({ passage }) => (width * (passage.start + passage.end)) / 2 / characters);
    leaders.replaceChildren();
    apart(wanted, width).forEach((x, index) => {
      pins.children[index].style.left = `${x}px`;
      leaders.append(draw("line", { x1: x, y1: 0, x2: wanted[index], y2: 10 }));
    });
  }).observe(pins);

  const at = (share) => {
    const start = Math.min(Math.floor(share * characters), characters - 1);
    return windows.find((window) => window.start <= start && start < window.end) ?? { start, end: start, page: null, section: null };
  };
  const shareOf = (event) => {
    const box = band.getBoundingClientRect();
    return Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
  };
  const told = (share) => `${Math.round(100 * share)}%: ${place(at(share), characters)}`;
  let share = 0;
  const choose = () => open({ ...at(share), end: at(share).start }, null);
  const move = (to) => {
    share = Math.min(Math.max(to, 0), 1);
    band.setAttribute("aria-valuenow", Math.round(100 * share));
    band.setAttribute("aria-valuetext", told(share));
    under.textContent = told(share);
    point(share);
  };
  const point = (to) => {
    needle.hidden = false;
    needle.style.left = `${100 * to}%`;
  };
  band.addEventListener("pointermove", (event) => (under.textContent = told(shareOf(event))));
  band.addEventListener("pointerleave", () => (under.textContent = ""));
  band.addEventListener("click", (event) => {
    move(shareOf(event));
    choose();
  });
  band.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: share - 1 / STEPS, ArrowDown: share - 1 / STEPS, ArrowRight: share + 1 / STEPS, ArrowUp: share + 1 / STEPS, Home: 0, End: 1 }[event.key];
    if (to !== undefined) move(to);
    else if (event.key === "Enter" || event.key === " ") choose();
    else return;
    event.preventDefault();
  });

  return {
    node,
    heat(scored) {
      windows = scored;
      picture.setAttribute("viewBox", `0 0 ${characters} 1`);
      picture.replaceChildren();
      const scores = windows.map((window) => window.score).sort((a, b) => a - b);
      // Half of a book has nothing to do with a question; of a few windows each may.
      const low = scores.length < 8 ? scores[0] - 1 : scores[Math.floor(scores.length / 2)];
      const range = scores[scores.length - 1] - low || 1;
      for (const window of windows) {
        const warmth = Math.max(window.score - low, 0) / range;
        if (warmth > 0.02) {
          picture.append(draw("rect", { x: window.start, y: 0, width: window.end - window.start, height: 1, "fill-opacity": (warmth ** 1.3).toFixed(3) }));
        }
      }
    },
    here(passage) {
      share = (passage.start + passage.end) / 2 / characters;
      point(share);
      band.setAttribute("aria-valuenow", Math.round(100 * share));
      band.setAttribute("aria-valuetext", told(share));
    },
  };
}
