// The room: a shelf, a desk to ask at, a lectern where the book lies open.

import { file, get } from "./api.js";
import { at, complain, make } from "./dom.js";
import { close, open } from "./lectern.js";
import { Shelf } from "./shelf.js";
import { ask } from "./turns.js";
import { count } from "./words.js";

const conversations = new Map(); // by book: the turns on the desk, and what was said
let current = null;

function show(book) {
  close();
  current = book;
  at("empty").hidden = book !== null;
  at("conversation").hidden = book === null;
  at("export").hidden = true;
  if (!book) return;
  if (!conversations.has(book.id)) conversations.set(book.id, { node: document.createElement("div"), said: [] });
  at("book-title").textContent = book.title;
  at("book-facts").textContent = [book.pages && `${count(book.pages)} pages`, `${count(book.tokens)} tokens`, `${count(book.characters)} characters`].filter(Boolean).join(" · ");
  const { node, said } = conversations.get(book.id);
  at("turns").replaceChildren(node);
  at("export").hidden = said.length === 0;
  at("contents").open = said.length === 0;
  contents(book).catch(complain);
  document.title = `${book.title} · Reading room`;
  at("question").focus();
}

async function contents(book) {
  at("contents").hidden = true;
  const sections = (await get(`v1/books/${encodeURIComponent(book.id)}/sections`)).data;
  if (current !== book) return;
  at("contents").hidden = sections.length < 2;
  at("sections").replaceChildren(...sections.map((section) => make("li", {}, make("button", {
    type: "button",
    onclick: (event) => open(book, { start: section.start, end: section.start, page: section.page, section: section.title }, { from: event.currentTarget }),
  }, make("span", {}, section.title), make("span", { class: "quiet" }, section.page === null ? "" : String(section.page))))));
}

at("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const question = at("question").value.trim();
  const button = at("ask").querySelector("button");
  if (!question || button.disabled) return;
  const { node, said } = conversations.get(current.id);
  const book = current;
  at("question").value = "";
  button.disabled = true;
  at("contents").open = false;
  try {
    const answer = await ask(book, question, node);
    said.push({
      book_id: book.id, question, answer: answer.answer, told: answer.told, confidence: answer.confidence, start: answer.start, end: answer.end,
      evidence: answer.evidence.map(({ start, end, citation }) => ({ start, end, citation })),
    });
    if (current === book) at("export").hidden = false;
  } catch (error) {
    at("question").value = question;
    complain(error);
  } finally {
    button.disabled = false;
  }
});

at("export").addEventListener("click", async (event) => {
  const format = event.target.dataset.format;
  if (!format) return;
  at("export").open = false;
  try {
    const turns = conversations.get(current.id).said;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await file("v1/export", { format, turns }));
    link.download = { markdown: "conversation.md", bibtex: "books.bib", "csl-json": "books.json" }[format];
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  } catch (error) {
    complain(error);
  }
});

addEventListener("keydown", (event) => {
  if (event.key === "Escape" && at("export").open) at("export").open = false;
  else if (event.key === "Escape") close();
  else if (event.key === "/" && current && !event.target.closest("input, dialog") && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    at("question").focus();
  }
});

const shelf = new Shelf(show);
shelf.load().then(() => shelf.books.length === 1 && shelf.select(shelf.books[0])).catch(complain);
