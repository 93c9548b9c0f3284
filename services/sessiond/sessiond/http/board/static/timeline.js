// The handoffs, as a strip (handlers above, the worker below) and as a table.
//
// A longer lease has a wider block, on a logarithmic scale, so that milliseconds and hours are both visible.

import { byId, list, make, setText } from "./dom.js";
import { clock, ended, running, seconds, span, sum } from "./words.js";

const PAUSE = 30; // a pause is shown if no lease is held for this many seconds
const weight = (held) => 1 + Math.log2(1 + 2 * held);

const name = (lease) => lease.key ?? lease.ticket;

function held(lease, now) {
  if (lease.begun === null) return null;
  return seconds(lease.begun, lease.ended ?? now);
}

function classOf(lease) {
  const how = lease.why === null ? "living" : lease.why === "preempted" ? "preempted" : lease.why === "released" ? "" : "lost";
  return `lease ${lease.kind} ${how}`.trim();
}

function describe(lease, now) {
  const time = held(lease, now);
  return [lease.kind, name(lease), lease.begun && clock(lease.begun), time === null ? null : span(time), ended(lease.why)]
    .filter(Boolean)
    .join(" · ");
}

/** The leases, with the pauses between them. */
function withPauses(leases) {
  const found = [];
  leases.forEach((lease, index) => {
    const before = leases[index - 1];
    const pause = before?.ended && lease.begun ? seconds(before.ended, lease.begun) : 0;
    if (pause >= PAUSE) found.push({ fence: `pause ${lease.fence}`, pause });
    found.push(lease);
  });
  return found;
}

function block(item, now) {
  if (item.pause) return make("li", "pause", make("span", "", span(item.pause)));
  const element = make("li", classOf(item), make("span", "block", make("span", "name", name(item))));
  element.style.flexGrow = weight(held(item, now) ?? 1);
  return element;
}

function row(lease, now) {
  const time = held(lease, now);
  const cells = [
    make("td", "time", lease.begun ? clock(lease.begun) : "earlier"),
    make("td", "", make("span", `badge ${lease.kind}`, lease.kind)),
    make("td", "key", name(lease)),
    make("td", "holder", lease.holder ?? ""),
    make("td", "time", time === null ? "" : lease.ended ? span(time) : running(time)),
    make("td", classOf(lease).includes("lost") || lease.why === "preempted" ? "odd" : "", ended(lease.why)),
  ];
  const element = make("tr", "", ...cells);
  element.dataset.fence = lease.fence;
  return element;
}

/** Draws the leases (null: the ledger is still being read). `now` is the time of the service. */
export function draw(leases, now) {
  setText(byId("handoffs-sum"), leases === null ? "reading the ledger…" : sum(leases));
  const shown = leases ?? [];
  const strip = byId("leases");
  const items = withPauses(shown);
  list(strip, items, (item) => item.fence, (item) => block(item, now));
  list(byId("handoffs-rows"), shown.toReversed(), (lease) => lease.fence, (lease) => row(lease, now));
  const first = shown.find((lease) => lease.begun);
  const last = shown.at(-1);
  setText(byId("from"), first ? clock(first.begun) : "");
  setText(byId("until"), last ? (last.ended ? clock(last.ended) : "now") : "");
  drawn = { shown, now };
}

/** Updates the block and the row of the lease that has not ended. */
export function grow(leases, now) {
  const last = leases?.at(-1);
  if (!last || last.ended) return;
  const element = byId("leases").lastElementChild;
  if (element) element.style.flexGrow = weight(held(last, now) ?? 1);
  const cell = byId("handoffs-rows").firstElementChild?.children[4];
  if (cell && last.begun) setText(cell, running(held(last, now)));
}

let drawn = { shown: [], now: "" };

byId("leases").addEventListener("pointerover", (event) => {
  const key = event.target.closest("li")?.dataset.key;
  const lease = drawn.shown.find((one) => String(one.fence) === key);
  setText(byId("pointed"), lease ? describe(lease, drawn.now) : "");
});
byId("leases").addEventListener("pointerleave", () => setText(byId("pointed"), ""));
