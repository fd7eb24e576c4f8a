// The room: a shelf, a desk to ask at, a lectern where the book lies open.

import { file } from "./api.js";
import { at, complain } from "./dom.js";
import { close } from "./lectern.js";
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
  document.title = `${book.title} · Reading room`;
  at("question").focus();
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
  try {
    const answer = await ask(book, question, node);
    said.push({
      book_id: book.id, question, answer: answer.answer, told: answer.told, confidence: answer.confidence, start: answer.start, end: answer.end,
      evidence: answer.evidence.map(({ start, end, page, section }) => ({ start, end, page, section })),
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
