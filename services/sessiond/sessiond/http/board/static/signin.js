// Signing in and out. The key goes to the service once and stays nowhere here.

import { byId, say } from "./dom.js";

const post = (path, body) =>
  fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

const others = new BroadcastChannel("sessiond-board");

/** `onIn()` and `onOut()` are also called when it happens in another tab. */
export function setUp(onIn, onOut) {
  byId("sign-in-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const field = byId("key");
    say(byId("sign-in-problem"), "");
    let why = "sessiond does not answer";
    try {
      const answer = await post("/v1/board/sign-in", { key: field.value });
      why = answer.ok ? null : answer.status === 401 ? "No such key" : (await answer.json()).detail;
    } catch {
      // It stays what it is: nobody answers.
    }
    if (why !== null) {
      say(byId("sign-in-problem"), why);
      field.setAttribute("aria-invalid", "true");
      field.focus();
      return;
    }
    field.value = "";
    field.removeAttribute("aria-invalid");
    others.postMessage("in");
    onIn();
  });
  byId("sign-out").addEventListener("click", async () => {
    try {
      if ((await post("/v1/board/sign-out", {})).ok) {
        others.postMessage("out");
        onOut();
      }
    } catch {
      // The connection's state is told elsewhere; the button can be pressed again.
    }
  });
  others.addEventListener("message", (event) => (event.data === "in" ? onIn() : onOut()));
}
