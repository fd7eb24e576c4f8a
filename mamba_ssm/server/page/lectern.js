// The book, opened at a passage: a page of a PDF with the words boxed, or the text with the words marked.

import { get, picture } from "./api.js";
import { at, calm, complain, make, say } from "./dom.js";
import { place } from "./words.js";

const AROUND = 5000; // characters shown on each side of a passage
const NARROW = matchMedia("(max-width: 48rem)");

let opened = null; // {book, passage, answer, number, from}: what is open, and what it was opened from
let shown = null; // where in the book: {page} or {start, end}
let asText = false;
let latest = 0; // only what was asked for last is shown
let drawn = null;

const path = () => `v1/books/${encodeURIComponent(opened.book.id)}`;
const paged = () => opened.book.pages !== null && opened.passage.page !== null && !asText;

/** Open a book at a passage. `focus`: whether the reader asked for it, and wants to be there. */
export async function open(book, passage, { answer = null, number = null, from = null, focus = true } = {}) {
  opened = { book, passage, answer, number, from };
  shown = { page: passage.page, start: Math.max(passage.start - AROUND, 0), end: passage.end + AROUND };
  at("room").classList.add("open");
  at("lectern").hidden = false;
  at("views").hidden = book.pages === null;
  shut();
  await show();
  if (focus) at("place").focus();
}

/** Close the book, and go back to where it was opened from. */
export function close() {
  if (!opened) return;
  const { from } = opened;
  opened = null;
  latest++;
  at("room").classList.remove("open");
  at("lectern").hidden = true;
  shut();
  if (from?.isConnected) from.focus();
}

/** On a narrow screen the book covers the rest, which must then not be reached by keyboard. */
function shut() {
  const covered = opened !== null && NARROW.matches;
  for (const node of document.querySelectorAll(".top, .shelf, .desk")) node.inert = covered;
}

async function show() {
  const ticket = ++latest;
  at("as-page").setAttribute("aria-pressed", String(!asText));
  at("as-text").setAttribute("aria-pressed", String(asText));
  try {
    const content = paged() ? await page() : await text();
    if (ticket !== latest) return;
    at("leaf").replaceChildren(content.node);
    at("earlier").disabled = content.first;
    at("later").disabled = content.last;
    at("place").textContent = content.title;
    if (content.loaded) await content.loaded;
    if (ticket === latest) scroll();
    say(opened.number ? `Passage ${opened.number}, ${content.title}` : content.title);
  } catch (error) {
    if (ticket === latest) complain(error);
  }
}

function scroll() {
  const leaf = at("leaf");
  const target = leaf.querySelector("[data-hit]");
  const top = target ? target.getBoundingClientRect().top - leaf.getBoundingClientRect().top + leaf.scrollTop - leaf.clientHeight / 3 : 0;
  leaf.scrollTo({ top: Math.max(top, 0), behavior: calm() ? "auto" : "smooth" });
}

async function page() {
  const { book, passage, answer } = opened;
  const number = shown.page;
  const boxes = async (range) =>
    range && range.start < range.end ? (await get(`${path()}/pages/${number}/boxes?start=${range.start}&end=${range.end}`)).boxes : [];
  const [source, passageBoxes, answerBoxes] = await Promise.all([
    picture(`${path()}/pages/${number}.png?width=1400`), boxes(passage), boxes(answer),
  ]);
  if (drawn) URL.revokeObjectURL(drawn);
  drawn = source;
  const image = make("img", { src: source, alt: `Page ${number} of ${book.title}` });
  const sheet = make("div", { class: "sheet" }, image);
  const put = (box, kind) => {
    const node = make("div", { class: kind, "data-hit": true, "aria-hidden": "true" });
    node.style.left = `${100 * box.left}%`;
    node.style.top = `${100 * box.top}%`;
    node.style.width = `${100 * (box.right - box.left)}%`;
    node.style.height = `${100 * (box.bottom - box.top)}%`;
    sheet.append(node);
  };
  passageBoxes.forEach((box) => put(box, "box"));
  answerBoxes.forEach((box) => put(box, "box answer"));
  const section = number === passage.page && passage.section ? ` · ${passage.section}` : "";
  return { node: sheet, title: `page ${number} of ${book.pages}${section}`, first: number <= 1, last: number >= book.pages, loaded: image.decode() };
}

async function text() {
  const { book, passage, answer } = opened;
  const { start, text } = await get(`${path()}/text?start=${shown.start}&end=${Math.min(shown.end, book.characters)}`);
  const cut = start > 0 ? Math.max(text.slice(0, 400).search(/\n/) + 1, 0) : 0;
  const end = start + text.length;
  const inside = passage.start >= start && passage.end <= end;
  const title = inside ? place(passage, book.characters) : `${Math.floor((100 * start) / book.characters)}% into the book`;
  return { node: leaf(text.slice(cut), start + cut, passage, answer), title, first: start <= 0, last: end >= book.characters };
}

/** Paragraphs of a text that starts at `offset` of the book, with the passage and the answer marked. */
export function leaf(text, offset, passage, answer) {
  const node = make("div");
  const edges = [passage, answer].flatMap((range) => (range ? [range.start - offset, range.end - offset] : []));
  const paragraphs = [...text.matchAll(/(?:[^\n]|\n(?![ \t]*\n))+/g)].filter((match) => match[0].trim());
  const code = inFences(paragraphs.map((match) => match[0]));
  for (const [index, match] of paragraphs.entries()) {
    const paragraph = match[0];
    const p = make("p", { class: code[index] ? "code" : kindOf(paragraph) });
    const cuts = edges.map((edge) => edge - match.index).filter((edge) => 0 < edge && edge < paragraph.length);
    cuts.push(0, paragraph.length);
    cuts.sort((a, b) => a - b);
    for (let i = 0; i + 1 < cuts.length; i++) {
      if (cuts[i] === cuts[i + 1]) continue;
      const place = offset + match.index + cuts[i];
      const piece = paragraph.slice(cuts[i], cuts[i + 1]);
      const within = (range) => range && range.start <= place && place < range.end;
      if (within(answer) && within(passage)) p.append(make("mark", { class: "answer", "data-hit": true }, piece));
      else if (within(passage)) p.append(make("mark", { "data-hit": true }, piece));
      else p.append(piece);
    }
    node.append(p);
  }
  return node;
}

/** Which paragraphs are fenced code. The text may begin inside a fence: then its long lines would be code. */
function inFences(paragraphs) {
  const fences = paragraphs.map((paragraph) => paragraph.match(/^[ \t]*(?:```|~~~)/gm)?.length ?? 0);
  const from = (inside) => fences.map((count) => {
    const code = inside || count > 0;
    if (count % 2) inside = !inside;
    return code;
  });
  const prose = (code) => paragraphs.filter((paragraph, index) => code[index] && /[^\n]{120}|^# .*$/.test(paragraph)).join("").length;
  const [outside, inside] = [from(false), from(true)];
  return fences.some(Boolean) && prose(inside) < prose(outside) ? inside : outside;
}

function kindOf(paragraph) {
  if (/^\s*#{1,6} .*\s*$/.test(paragraph)) return "heading";
  const lines = paragraph.split("\n").filter((line) => line.trim());
  if (lines.every((line) => /^(?: {4}|\t)/.test(line))) return "code";
  if (lines.some((line) => /^\s*(?:[-*+•|>]|\d+[.)])\s/.test(line)) || Math.max(...lines.map((line) => line.length)) < 48) return "verse";
  return null;
}

function turn(by) {
  if (paged()) {
    shown.page = Math.min(Math.max(shown.page + by, 1), opened.book.pages);
  } else {
    const size = 2 * AROUND;
    const start = Math.min(Math.max(shown.start + by * AROUND * 1.6, 0), Math.max(opened.book.characters - 200, 0));
    shown = { ...shown, start: Math.floor(start), end: Math.floor(start) + size };
  }
  show();
}

at("earlier").addEventListener("click", () => turn(-1));
at("later").addEventListener("click", () => turn(1));
at("close").addEventListener("click", close);
for (const [id, wanted] of [["as-page", false], ["as-text", true]]) {
  at(id).addEventListener("click", () => {
    asText = wanted;
    shown = { page: opened.passage.page, start: Math.max(opened.passage.start - AROUND, 0), end: opened.passage.end + AROUND };
    show();
  });
}
NARROW.addEventListener("change", shut);
