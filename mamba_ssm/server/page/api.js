// The server's API: JSON, pictures, and events as they come.

import { at } from "./dom.js";

let key = sessionStorage.getItem("key");

/** All requests that were refused wait for one dialog. */
async function askForKey() {
  const dialog = at("key-dialog");
  if (!dialog.open) {
    at("key").value = "";
    dialog.showModal();
  }
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  key = at("key").value;
  sessionStorage.setItem("key", key);
}

async function respond(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  if (response.status === 401) {
    await askForKey();
    return respond(path, options);
  }
  if (!response.ok) throw new Error(await complaint(response));
  return response;
}

async function complaint(response) {
  try {
    const problem = await response.json();
    return problem.detail;
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}

const json = (body) => ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

export const get = async (path) => (await respond(path)).json();
export const picture = async (path) => URL.createObjectURL(await (await respond(path)).blob());
export const remove = (path) => respond(path, { method: "DELETE" });
export const file = async (path, body) => (await respond(path, json(body))).blob();

export async function upload(path, chosen) {
  const form = new FormData();
  form.append("purpose", "user_data");
  form.append("file", chosen);
  return (await respond(path, { method: "POST", body: form })).json();
}

/** The objects of a stream of events. */
export async function* events(path, body) {
  const response = await respond(path, json(body));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (waiting + value).split("\n");
    waiting = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const data = JSON.parse(line.slice("data: ".length));
      if (data.error) throw new Error(data.detail);
      yield data;
    }
  }
}
