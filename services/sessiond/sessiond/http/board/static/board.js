// The page: the state from the stream, and the selected session.

import { byId, list, make, setText } from "./dom.js";
import { Stream } from "./live.js";
import { setUp } from "./signin.js";
import { draw, grow } from "./timeline.js";
import { PHASES, clock, running, seconds, waiting, why } from "./words.js";

const NAME = /^[a-z0-9._-]+\/[a-z0-9._-]+$/;
const ANNOUNCE_AFTER = 3_000; // a holder is announced once it has held this long
const LIMIT = 100; // leases shown

const state = { sessions: new Map(), detail: null, leases: null, clockOffset: 0, selected: null };

/** The time of the service. */
const now = () => new Date(Date.now() + state.clockOffset).toISOString();

// ---- the stream ---------------------------------------------------------------------------

function start() {
  setLink("connecting");
  select();
}

/** Opens the stream for the session that the address names. */
function select() {
  const wanted = decodeURIComponent(location.hash.slice(1));
  state.selected = NAME.test(wanted) ? wanted : null;
  state.detail = state.leases = null;
  stream.open(state.selected);
  show();
}

function handle(event, data) {
  const isSelected = data.session === state.selected;
  switch (event) {
    case "hello":
      state.sessions = new Map(data.sessions.map((row) => [row.session, row]));
      state.clockOffset = Date.parse(data.now) - Date.now();
      state.detail = data.detail;
      state.leases = data.handoffs;
      setHealth(data.service);
      signedIn();
      if (state.selected === null && state.sessions.size) {
        const busy = data.sessions.find((row) => row.holder) ?? data.sessions[0];
        history.replaceState(null, "", `#${busy.session}`);
        select();
        return;
      }
      break;
    case "session":
      state.sessions.set(data.session, data);
      break;
    case "gone":
      state.sessions.delete(data.session);
      if (isSelected) state.detail = null;
      break;
    case "detail":
      if (isSelected) state.detail = data;
      break;
    case "handoffs":
      if (isSelected) merge(data.handoffs);
      break;
    case "beat":
      state.clockOffset = Date.parse(data.now) - Date.now();
      setHealth(data.service);
      break;
  }
  show();
}

function merge(changed) {
  const leases = new Map((state.leases ?? []).map((lease) => [lease.fence, lease]));
  for (const lease of changed) leases.set(lease.fence, lease);
  state.leases = [...leases.values()].sort((a, b) => a.fence - b.fence).slice(-LIMIT);
}

// ---- the connection -----------------------------------------------------------------------

let service = { ready: true, detail: "" };
let link = { state: "connecting", why: "" };
let lastEvent = null; // when the last event arrived

function setHealth(health) {
  service = health;
}

function setLink(next, reason = "") {
  if (next === "live") lastEvent = new Date();
  link = { state: next, why: reason };
  showLink();
}

function showLink() {
  const shown = link.state === "live" && !service.ready ? "doubt" : link.state;
  const text = {
    live: () => "live",
    connecting: () => "connecting",
    doubt: () => `live, but not ready: ${service.detail}`,
    lost: () => `${link.why}${lastEvent ? `; shown as of ${clock(lastEvent)}` : ""}`,
  }[shown]();
  const element = byId("link");
  if (element.dataset.state !== shown && !(element.dataset.state === "connecting" && shown === "live")) {
    announce({ live: "Reconnected", lost: "Disconnected", doubt: text }[shown]);
  }
  element.dataset.state = shown;
  byId("board").classList.toggle("old", shown === "lost");
  setText(byId("link-text"), text);
}

function announce(text) {
  if (text) setText(byId("announce"), text);
}

// ---- sign-in ------------------------------------------------------------------------------

function askForKey() {
  stream.stop();
  Object.assign(state, { sessions: new Map(), detail: null, leases: null });
  lastEvent = null;
  paint();
  setLink("connecting");
  setText(byId("link-text"), "signed out");
  byId("board").hidden = byId("sign-out").hidden = true;
  byId("sign-in").hidden = false;
  document.title = "Sign in · sessiond";
  byId("key").focus();
}

function signedIn() {
  if (!byId("board").hidden) return;
  const typed = !byId("sign-in").hidden;
  byId("sign-in").hidden = true;
  byId("board").hidden = byId("sign-out").hidden = false;
  if (typed) byId("session").focus();
}

// ---- what is shown ------------------------------------------------------------------------

let scheduled = false;

/** Draws at most once per animation frame, for any number of events. A hidden tab is not drawn. */
function show() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    paint();
  });
}

function paint() {
  const rows = [...state.sessions.values()].sort((a, b) => (a.session < b.session ? -1 : 1));
  list(byId("sessions"), rows.map((row) => ({ ...row, isSelected: row.session === state.selected })), (row) => row.session, entry);
  byId("no-sessions").hidden = rows.length > 0;
  const { detail, selected } = state;
  setText(byId("session-title"), selected ?? "No session yet");
  byId("chosen").hidden = detail === null;
  const nothing = byId("nothing");
  nothing.hidden = detail !== null || selected === null;
  setText(nothing, link.state !== "live" || state.sessions.has(selected ?? "") ? "Loading…" : "This session has not been used yet, or another instance owns it.");
  document.title = selected ? `${heldBy(detail)} · ${selected}` : "sessiond";
  if (detail === null) {
    for (const id of ["holder", "agent", "queue-rows"]) byId(id).replaceChildren();
    draw(null, now());
    return;
  }
  holder(detail);
  agent(detail.agent);
  queue(detail);
  draw(state.leases, now());
  announceLater(detail);
}

const heldBy = (detail) => (detail?.holder ? `${detail.holder.kind} holds` : detail?.draining ? "draining" : "free");

function entry(row) {
  const name = make("span", "name", row.session);
  const held = row.holder ? `${row.holder.kind} holds` : row.draining ? "draining" : "free";
  const dot = make("span", `dot ${row.holder?.kind ?? (row.draining ? "draining" : "free")}`);
  dot.setAttribute("aria-hidden", "true");
  const facts = [held];
  if (row.waiting.handler + row.waiting.worker) facts.push(waiting(row.waiting));
  if (row.agent !== "idle" && row.agent !== "asleep") facts.push(`agent ${PHASES[row.agent] ?? row.agent}`);
  const link = make("a", "", dot, name, make("span", "quiet", facts.join(" · ")));
  link.href = `#${row.session}`;
  if (row.isSelected) link.setAttribute("aria-current", "true");
  return make("li", "", link);
}

function holder(detail) {
  const { holder: held, draining } = detail;
  const what = held ?? draining;
  const parts = [make("h2", "", held ? "Holds the lease" : draining ? "Draining" : "The lock")];
  if (what) {
    parts.push(make("p", "big", make("span", `badge ${what.kind}`, what.kind), make("span", "key", what.key ?? what.ticket)));
  } else {
    parts.push(make("p", "big", "free"));
  }
  if (held) {
    const time = make("time", "running");
    if (held.since) {
      time.dateTime = held.since;
      time.textContent = running(seconds(held.since, now()));
    }
    parts.push(make("p", "", time, held.since ? `, since ${clock(held.since)}` : "", held.claimed ? "" : ", not claimed yet"));
    parts.push(make("p", "quiet key", `holder ${held.holder}`));
  } else if (draining) {
    parts.push(make("p", "", `the lease has ended (${draining.why}); its last turn is closing`));
  } else {
    parts.push(make("p", "quiet", detail.queue.length ? "no holder that could have the lease is waiting" : "nobody is waiting"));
  }
  list(byId("holder"), [{ held, draining, free: !what && detail.queue.length }], () => "holder", () => make("div", "", ...parts));
}

function agent(shown) {
  const parts = [make("h2", "", "Agent"), make("p", "big", make("span", `badge agent ${shown.state}`, PHASES[shown.state] ?? shown.state))];
  if (shown.why) parts.push(make("p", "", shown.why));
  if (shown.tasks) parts.push(make("p", "", `${shown.tasks} background task${shown.tasks === 1 ? "" : "s"}`));
  const { generation, fresh } = shown.conversation;
  parts.push(make("p", "quiet", fresh ? "a new conversation" : `conversation, generation ${generation}`));
  list(byId("agent"), [shown], () => "agent", () => make("div", "", ...parts));
}

function queue(detail) {
  const counts = state.sessions.get(detail.session)?.waiting;
  const more = detail.more ? `; showing the first ${detail.queue.length}` : "";
  setText(byId("queue-sum"), counts ? waiting(counts) + more : "");
  byId("queue-scroll").hidden = detail.queue.length === 0;
  list(byId("queue-rows"), detail.queue, (ticket) => ticket.ticket, (ticket) => {
    const time = make("time", "running");
    if (ticket.taken_at) {
      time.dateTime = ticket.taken_at;
      time.textContent = running(seconds(ticket.taken_at, now()));
    }
    const row = make(
      "tr", ticket.present ? "" : "absent", make("td", "time", ticket.position),
      make("td", "", make("span", `badge ${ticket.kind}`, ticket.kind)), make("td", "key", ticket.key ?? ticket.ticket),
      make("td", "", why(ticket)), make("td", "time", time), make("td", "holder", ticket.holder ?? ""),
    );
    row.dataset.ticket = ticket.ticket;
    return row;
  });
}

let announced = "";
let announcement = null;

/** Announces the holder to screen readers when it has not changed for a while, so that many changes give one sentence. */
function announceLater(detail) {
  const text = `${detail.session}: ${detail.holder ? `${detail.holder.kind} holds` : heldBy(detail)}`;
  if (text === announced) return;
  announced = text;
  clearTimeout(announcement);
  announcement = setTimeout(() => announce(text), ANNOUNCE_AFTER);
}

/** Updates durations, but only while the stream is live. */
function tick() {
  if (link.state !== "live") return;
  for (const time of document.querySelectorAll("time.running")) {
    if (time.dateTime) setText(time, running(seconds(time.dateTime, now())));
  }
  grow(state.leases, now());
}

// ---- start --------------------------------------------------------------------------------

const stream = new Stream({ event: handle, state: setLink, signIn: askForKey });
setUp(start, askForKey);
addEventListener("hashchange", select);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("session").focus();
});
setInterval(tick, 1_000);
start();
