// Sign-in and sign-out. The key is sent to the service once and not stored in the browser.

import { byId, setText } from "./dom.js";

const post = (path, body) =>
  fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

const otherTabs = new BroadcastChannel("sessiond-board");

/** Calls `onIn()` and `onOut()`, also when the user signs in or out in another tab. */
export function setUp(onIn, onOut) {
  byId("sign-in-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const field = byId("key");
    setText(byId("sign-in-problem"), "");
    let why = "No answer from sessiond";
    try {
      const answer = await post("/v1/board/sign-in", { key: field.value });
      why = answer.ok ? null : answer.status === 401 ? "This key is unknown" : (await answer.json()).detail;
    } catch {
      // No answer: `why` already says so.
    }
    if (why !== null) {
      setText(byId("sign-in-problem"), why);
      field.setAttribute("aria-invalid", "true");
      field.focus();
      return;
    }
    field.value = "";
    field.removeAttribute("aria-invalid");
    otherTabs.postMessage("in");
    onIn();
  });
  byId("sign-out").addEventListener("click", async () => {
    try {
      if ((await post("/v1/board/sign-out", {})).ok) {
        otherTabs.postMessage("out");
        onOut();
      }
    } catch {
      // The header shows the state of the connection; the user can try again.
    }
  });
  otherTabs.addEventListener("message", (event) => (event.data === "in" ? onIn() : onOut()));
}
