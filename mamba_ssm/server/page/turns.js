// A question with its answer, its citations, and where in the book they lie.

import { events } from "./api.js";
import { make, say } from "./dom.js";
import { open } from "./lectern.js";
import { strip } from "./strip.js";
import { place, sureness } from "./words.js";

const FIRST = 3; // passages that are listed before one asks for the others
const WIDE = matchMedia("(min-width: 75.01rem)");

/** Ask a book, and show the answer in a new article under `into` as it comes. Returns what was said, for the export. */
export async function ask(book, question, into) {
  const waiting = make("p", { class: "waiting" }, "Looking through the book…");
  const article = make("article", { class: "turn", "aria-label": question }, make("h3", {}, question), waiting);
  into.append(article);
  article.scrollIntoView({ block: "start" });
  let answer = null;
  let map = null;
  try {
    for await (const event of events(`v1/books/${encodeURIComponent(book.id)}/ask`, { question, stream: true })) {
      if (event.type === "answer") {
        answer = event;
        waiting.remove();
        map = fill(article, book, answer);
      }
      if (event.type === "windows") map.heat(event.windows);
    }
  } catch (error) {
    if (!answer) article.remove();
    throw error;
  }
  return answer;
}

function fill(article, book, answer) {
  const answered = answer.start === null ? null : { start: answer.start, end: answer.end };
  const cited = answer.evidence.filter((passage) => answered && passage.start <= answered.start && answered.end <= passage.end);
  const current = (number) => {
    for (const node of document.querySelectorAll(".turn [aria-current]")) node.removeAttribute("aria-current");
    if (number) for (const node of article.querySelectorAll(`[data-number="${number}"]`)) node.setAttribute("aria-current", "true");
  };
  const turnTo = (passage, number, focus = true) => {
    current(number);
    map.here(passage);
    return open(book, passage, { answer: answered, number, from: focus ? document.activeElement : null, focus });
  };
  const map = strip(book, answer.evidence, cited, turnTo);

  const says = make("p", { class: "answer" }, answer.answer || "Nothing found.");
  for (const passage of cited) {
    const number = answer.evidence.indexOf(passage) + 1;
    says.append(make("button", {
      type: "button", class: "cite", "data-number": number, onclick: () => turnTo(passage, number),
      "aria-label": `Passage ${number}, ${place(passage, book.characters)}`,
    }, String(number)));
  }
  if (answer.told) {
    article.append(says, make("p", { class: "quiet sureness" }, sureness(answer)));
  } else {
    article.append(make("p", { class: "answer none" }, "The book does not seem to tell."));
    if (answer.answer) {
      says.className = "nearest";
      says.prepend("The nearest it comes: ");
      article.append(says);
    }
  }
  article.append(map.node, passages(book, answer, answered, turnTo));
  say(`${answer.told ? answer.answer : `The book does not seem to tell. The nearest it comes: ${answer.answer}`}. ${answer.told ? sureness(answer) : ""} ${answer.evidence.length} passages.`);
  const best = cited[0] ?? answer.evidence[0];
  if (best && WIDE.matches && article.isConnected) turnTo(best, answer.evidence.indexOf(best) + 1, false);
  return map;
}

function passages(book, answer, answered, turnTo) {
  const list = make("ol", { class: "passages", "aria-label": "Passages" });
  answer.evidence.forEach((passage, index) => {
    const number = index + 1;
    list.append(make("li", { hidden: index >= FIRST }, make("button", {
      type: "button", class: "passage", "data-number": number, onclick: () => turnTo(passage, number),
    }, make("span", { class: "number" }, String(number)),
      make("span", {}, make("span", { class: "where" }, place(passage, book.characters)), snippet(passage, answered)))));
  });
  const rest = answer.evidence.length - FIRST;
  if (rest <= 0) return list;
  const more = make("button", { type: "button", class: "more", onclick: () => {
    for (const item of list.children) item.hidden = false;
    list.children[FIRST].firstElementChild.focus();
    more.remove();
  } }, rest === 1 ? "One more passage" : `${rest} more passages`);
  return make("div", {}, list, more);
}

/** A passage's text with the answer in it marked; what comes long before the answer is left out. */
function snippet(passage, answered) {
  const node = make("span", { class: "snippet" });
  const text = passage.text;
  if (!answered || answered.start < passage.start || answered.end > passage.end) {
    node.append(text);
    return node;
  }
  const [start, end] = [answered.start - passage.start, answered.end - passage.start];
  const from = start > 60 ? text.indexOf(" ", start - 60) + 1 : 0;
  node.append((from ? "… " : "") + text.slice(from, start), make("mark", {}, text.slice(start, end)), text.slice(end));
  return node;
}
