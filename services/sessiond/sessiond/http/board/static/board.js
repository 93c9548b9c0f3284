// What the page shows: the state that the stream tells, and the chosen session.

import { byId, list, make, say } from "./dom.js";
import { Live } from "./live.js";
import { setUp } from "./signin.js";
import { draw, grow } from "./timeline.js";
import { PHASES, clock, running, seconds, waiting, why } from "./words.js";

const NAME = /^[a-z0-9._-]+\/[a-z0-9._-]+$/;
const QUIET = 3_000; // a holder is announced when it has held so long
const LIMIT = 100;

const state = { sessions: new Map(), detail: null, leases: null, ahead: 0, selected: null };

const now = () => new Date(Date.now() + state.ahead).toISOString();

// ---- the stream ---------------------------------------------------------------------------

function begin() {
  tell("connecting");
  choose();
}

function choose() {
  const wanted = decodeURIComponent(location.hash.slice(1));
  state.selected = NAME.test(wanted) ? wanted : null;
  state.detail = state.leases = null;
  live.follow(state.selected);
  show();
}

function take(event, data) {
  const mine = data.session === state.selected;
  switch (event) {
    case "hello":
      state.sessions = new Map(data.sessions.map((row) => [row.session, row]));
      state.ahead = Date.parse(data.now) - Date.now();
      state.detail = data.detail;
      state.leases = data.handoffs;
      health(data.service);
      signedIn();
      if (state.selected === null && state.sessions.size) {
        const busy = data.sessions.find((row) => row.holder) ?? data.sessions[0];
        history.replaceState(null, "", `#${busy.session}`);
        choose();
        return;
      }
      break;
    case "session":
      state.sessions.set(data.session, data);
      break;
    case "gone":
      state.sessions.delete(data.session);
      if (mine) state.detail = null;
      break;
    case "detail":
      if (mine) state.detail = data;
      break;
    case "handoffs":
      if (mine) merge(data.handoffs);
      break;
    case "beat":
      state.ahead = Date.parse(data.now) - Date.now();
      health(data.service);
      break;
  }
  show();
}

function merge(changed) {
  const leases = new Map((state.leases ?? []).map((lease) => [lease.fence, lease]));
  for (const lease of changed) leases.set(lease.fence, lease);
  state.leases = [...leases.values()].sort((a, b) => a.fence - b.fence).slice(-LIMIT);
}

// ---- is it live? --------------------------------------------------------------------------

let service = { ready: true, detail: "" };
let link = { state: "connecting", why: "" };
let last = null;

function health(told) {
  service = told;
}

function tell(next, reason = "") {
  if (next === "live") last = new Date();
  link = { state: next, why: reason };
  showLink();
}

function showLink() {
  const shown = link.state === "live" && !service.ready ? "doubt" : link.state;
  const text = {
    live: () => "live",
    connecting: () => "connecting",
    doubt: () => `live, but not ready: ${service.detail}`,
    lost: () => `${link.why}${last ? `; shown as of ${clock(last)}` : ""}`,
  }[shown]();
  const element = byId("link");
  if (element.dataset.state !== shown && !(element.dataset.state === "connecting" && shown === "live")) {
    announce({ live: "Connected again", lost: "Disconnected", doubt: text }[shown]);
  }
  element.dataset.state = shown;
  byId("board").classList.toggle("old", shown === "lost");
  say(byId("link-text"), text);
}

function announce(text) {
  if (text) say(byId("announce"), text);
}

// ---- sign-in ------------------------------------------------------------------------------

function askKey() {
  live.stop();
  Object.assign(state, { sessions: new Map(), detail: null, leases: null });
  last = null;
  paint();
  tell("connecting");
  say(byId("link-text"), "signed out");
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

let wanted = false;

/** Draws once a frame, however many events came. A hidden tab has no frames and needs none. */
function show() {
  if (wanted) return;
  wanted = true;
  requestAnimationFrame(() => {
    wanted = false;
    paint();
  });
}

function paint() {
  const rows = [...state.sessions.values()].sort((a, b) => (a.session < b.session ? -1 : 1));
  list(byId("sessions"), rows.map((row) => ({ ...row, chosen: row.session === state.selected })), (row) => row.session, entry);
  byId("no-sessions").hidden = rows.length > 0;
  const { detail, selected } = state;
  say(byId("session-title"), selected ?? "No session yet");
  byId("chosen").hidden = detail === null;
  const nothing = byId("nothing");
  nothing.hidden = detail !== null || selected === null;
  say(nothing, link.state !== "live" || state.sessions.has(selected ?? "") ? "Reading." : "Nobody has used this session yet, or this instance does not own it.");
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
  const said = [held];
  if (row.waiting.handler + row.waiting.worker) said.push(waiting(row.waiting));
  if (row.agent !== "idle" && row.agent !== "asleep") said.push(`agent ${PHASES[row.agent] ?? row.agent}`);
  const link = make("a", "", dot, name, make("span", "quiet", said.join(" · ")));
  link.href = `#${row.session}`;
  if (row.chosen) link.setAttribute("aria-current", "true");
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
    parts.push(make("p", "", `its lease ended (${draining.why}), its last turn is being closed`));
  } else {
    parts.push(make("p", "quiet", detail.queue.length ? "nobody who could have it waits on it now" : "nobody waits"));
  }
  list(byId("holder"), [{ held, draining, free: !what && detail.queue.length }], () => "holder", () => make("div", "", ...parts));
}

function agent(told) {
  const shown = [make("h2", "", "Agent"), make("p", "big", make("span", `badge agent ${told.state}`, PHASES[told.state] ?? told.state))];
  if (told.why) shown.push(make("p", "", told.why));
  if (told.tasks) shown.push(make("p", "", `${told.tasks} background task${told.tasks === 1 ? "" : "s"}`));
  const { generation, fresh } = told.conversation;
  shown.push(make("p", "quiet", fresh ? "a fresh conversation" : `conversation, generation ${generation}`));
  list(byId("agent"), [told], () => "agent", () => make("div", "", ...shown));
}

function queue(detail) {
  const counts = state.sessions.get(detail.session)?.waiting;
  const more = detail.more ? `; the first ${detail.queue.length} are shown` : "";
  say(byId("queue-sum"), counts ? waiting(counts) + more : "");
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
let soon = null;

/** Tells a screen reader who holds, once it has stayed so: a flurry is one sentence, not ten. */
function announceLater(detail) {
  const text = `${detail.session}: ${detail.holder ? `${detail.holder.kind} holds` : heldBy(detail)}`;
  if (text === announced) return;
  announced = text;
  clearTimeout(soon);
  soon = setTimeout(() => announce(text), QUIET);
}

/** Times go on only while it is known that they do. */
function tick() {
  if (link.state !== "live") return;
  for (const time of document.querySelectorAll("time.running")) {
    if (time.dateTime) say(time, running(seconds(time.dateTime, now())));
  }
  grow(state.leases, now());
}

// ---- begin --------------------------------------------------------------------------------

const live = new Live({ event: take, state: tell, signIn: askKey });
setUp(begin, askKey);
addEventListener("hashchange", choose);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("session").focus();
});
setInterval(tick, 1_000);
begin();
