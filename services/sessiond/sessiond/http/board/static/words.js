// The sentences of the board. Pure.

export const PHASES = {
  asleep: "asleep", starting: "starting", idle: "idle", in_turn: "in a turn", stopping: "stopping", broken: "broken",
};

const ENDS = {
  released: "released", preempted: "preempted by a handler", expired: "expired", unclaimed: "not claimed in time",
  "hold-limit": "hold limit reached", forced: "ended by an admin", withdrawn: "withdrawn", unknown: "not recorded",
};

/** Why a lease ended, in words. `why` is null until the lease ends. */
export const ended = (why) => (why === null ? "holds now" : ENDS[why] ?? why);

/** A duration for people: 40 ms, 3.2 s, 4 min 10 s, 2 h 05 min. */
export function span(seconds) {
  if (seconds < 0) return "0 s";
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  if (minutes < 1440) return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${Math.floor(minutes / 1440)} d ${Math.floor((minutes % 1440) / 60)} h`;
}

/** A duration that still grows, in whole seconds so that it changes evenly. */
export const running = (seconds) => (seconds < 60 ? `${Math.max(0, Math.floor(seconds))} s` : span(seconds));

/** The time of day, with the date if that is not today. */
export function clock(moment, now = new Date()) {
  const at = new Date(moment);
  const time = at.toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
  return at.toDateString() === now.toDateString() ? time : `${at.toLocaleDateString()} ${time}`;
}

export const seconds = (from, to) => (Date.parse(to) - Date.parse(from)) / 1000;

const count = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;

/** Why a ticket waits, in one sentence. */
export function why(ticket) {
  const reasons = ticket.why.map((one) => {
    switch (one.why) {
      case "absent": return ticket.lapsed ? "holder absent; lapsed" : ticket.passed_over ? "holder absent; passed over" : "holder absent";
      case "holds": return `a ${one.kind} holds the lease`;
      case "draining": return `the ${one.kind}'s last turn is closing`;
      case "handlers-first": return `handlers first (${one.count})`;
      case "head-wait": return "waiting briefly for the head of the queue";
      case "queued": return `${one.count} ahead`;
      default: return one.why;
    }
  });
  return reasons.length ? reasons.join(" · ") : "next";
}

/** The handoffs in one sentence. Screen readers use it as the text of the timeline. */
export function sum(leases) {
  if (!leases.length) return "none yet";
  const handlers = leases.filter((l) => l.kind === "handler").length;
  const cut = leases.filter((l) => l.why === "preempted").length;
  const parts = [`the last ${leases.length}`, `${handlers} by handlers`, `${leases.length - handlers} by the worker`];
  return `${parts.join(", ")}; ${count(cut, "preemption")}`;
}

/** The queue, in one sentence. */
export function waiting({ handler, worker }) {
  if (!handler && !worker) return "nobody is waiting";
  const parts = [];
  if (handler) parts.push(count(handler, "handler"));
  if (worker) parts.push(count(worker, "worker"));
  return `${parts.join(" and ")} waiting`;
}
