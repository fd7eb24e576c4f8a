// The shelf: books to choose from, and new ones while they are read.

import { get, remove, upload } from "./api.js";
import { at, complain, make, say } from "./dom.js";
import { count } from "./words.js";

const EVERY = 400; // milliseconds between two looks at a book that is read

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Show the shelf; `choose(book)` is called with a book that is chosen, or null when it is gone. */
export class Shelf {
  constructor(choose) {
    this.choose = choose;
    this.books = [];
    this.current = null;
    this.watched = new Set(); // ids of the files that are being read
    at("file").addEventListener("change", () => {
      this.add([...at("file").files]);
      at("file").value = "";
    });
    let depth = 0;
    const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
    addEventListener("dragenter", (event) => carriesFiles(event) && (at("drop").hidden = ++depth === 0));
    addEventListener("dragleave", (event) => carriesFiles(event) && (at("drop").hidden = --depth === 0));
    addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
    addEventListener("drop", (event) => {
      if (!carriesFiles(event)) return;
      event.preventDefault();
      depth = 0;
      at("drop").hidden = true;
      this.add([...event.dataTransfer.files]);
    });
  }

  async load() {
    this.books = (await get("v1/books")).data;
    at("books").replaceChildren(...this.books.map((book) => this.spine(book)));
    for (const file of (await get("v1/files")).data) {
      if (file.status === "uploaded" && !this.watched.has(file.id)) this.watch(file).catch(complain);
    }
  }

  spine(book) {
    const facts = [book.pages === null ? `${count(book.tokens)} tokens` : `${count(book.pages)} pages`];
    const choose = make("button", {
      type: "button", class: "choose", "data-book": book.id, "aria-current": book.id === this.current?.id ? "true" : false,
      onclick: () => this.select(book),
    }, make("span", { class: "name" }, book.title), make("span", { class: "quiet" }, facts.join(" · ")));
    const node = make("li", { class: "book" }, choose);
    node.style.setProperty("--hue", parseInt(book.id.slice(0, 4), 16) % 360 || 0);
    if (book.file_id) node.append(this.remover(book));
    return node;
  }

  /** Asks once more before a book goes. */
  remover(book) {
    const button = make("button", { type: "button", class: "remove", "aria-label": `Remove ${book.title}` }, "×");
    button.addEventListener("blur", () => {
      button.textContent = "×";
      button.classList.remove("sure");
    });
    button.addEventListener("click", async () => {
      if (!button.classList.contains("sure")) {
        button.classList.add("sure");
        button.textContent = "remove?";
        say(`Press once more to remove ${book.title}`);
        return;
      }
      try {
        await remove(`v1/files/${encodeURIComponent(book.file_id)}`);
        say(`${book.title} is removed`);
        if (this.current?.id === book.id) this.select(null);
        await this.load();
      } catch (error) {
        complain(error);
      }
    });
    return button;
  }

  select(book) {
    this.current = book;
    for (const node of at("books").querySelectorAll("[data-book]")) {
      if (node.dataset.book === book?.id) node.setAttribute("aria-current", "true");
      else node.removeAttribute("aria-current");
    }
    this.choose(book);
  }

  async add(files) {
    for (const file of files) {
      const arrival = this.arrival(file.name);
      try {
        await this.watch(await upload("v1/files", file), arrival);
      } catch (error) {
        arrival.fail(error.message);
      }
    }
  }

  arrival(name) {
    const facts = make("span", { class: "quiet facts" }, "on its way");
    const progress = make("progress", { max: "1", "aria-label": `Reading ${name}` });
    const node = make("li", { class: "arrival" }, make("span", { class: "name" }, name), progress, facts);
    at("arrivals").append(node);
    say(`Reading ${name}`);
    return {
      node,
      show({ tokens, tokens_per_second: speed, share }) {
        if (share !== null) progress.value = share;
        facts.textContent = tokens ? `${count(tokens)} tokens, ${count(Math.round(speed))} a second` : "reading";
      },
      fail(why) {
        progress.remove();
        facts.textContent = why;
        node.classList.add("failed");
        node.append(make("button", { type: "button", class: "quiet", onclick: () => node.remove() }, "Put aside"));
        say(why);
      },
    };
  }

  async watch(file, arrival = this.arrival(file.filename)) {
    this.watched.add(file.id);
    try {
      while (file.status === "uploaded") {
        arrival.show(file.progress);
        await pause(EVERY);
        file = await get(`v1/files/${encodeURIComponent(file.id)}`);
      }
    } finally {
      this.watched.delete(file.id);
    }
    if (file.status === "error") return arrival.fail(file.status_details);
    arrival.node.remove();
    await this.load();
    say(`${file.filename} is read`);
    // Who is writing to another book meanwhile is not disturbed.
    if (!at("question").value) this.select(this.books.find((book) => book.id === file.book_id));
  }
}
