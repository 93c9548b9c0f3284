// The stream. It connects, reconnects by itself, and detects that the shown data may be out of date.

const STALE = 12_000; // the service sends a beat every 5 s
const LONGEST = 8_000; // between two attempts to connect

/** Calls `on.event(name, data)`, `on.state("live" | "connecting" | "lost", why)` and `on.signIn()`. */
export class Stream {
  constructor(on) {
    this.on = on;
    this.session = null;
    this.source = null;
    this.tries = 0;
    this.lastData = 0;
    this.retry = null;
    this.attempt = 0;
    setInterval(() => this.#check(), 1_000);
    addEventListener("online", () => this.#reconnect(0));
    document.addEventListener("visibilitychange", () => document.hidden || this.#check());
  }

  /** Opens a new stream, with this session in detail (null: none). */
  open(session) {
    this.session = session;
    this.tries = 0;
    this.#reconnect(0);
  }

  stop() {
    this.attempt += 1;
    clearTimeout(this.retry);
    this.source?.close();
    this.source = null;
    this.lastData = 0;
  }

  get path() {
    return this.session ? `/v1/board?session=${encodeURIComponent(this.session)}` : "/v1/board";
  }

  #reconnect(wait) {
    this.stop();
    this.retry = setTimeout(() => this.#connect(), wait);
  }

  #connect() {
    const source = new EventSource(this.path);
    this.source = source;
    this.lastData = Date.now();
    for (const name of ["hello", "session", "gone", "detail", "handoffs", "beat"]) {
      source.addEventListener(name, (event) => {
        if (source !== this.source) return;
        this.lastData = Date.now();
        this.tries = 0;
        this.on.event(name, JSON.parse(event.data));
        this.on.state("live");
      });
    }
    source.addEventListener("problem", (event) => source === this.source && this.#lost(JSON.parse(event.data)));
    source.addEventListener("error", () => source === this.source && this.#findReason());
  }

  /** An EventSource does not give the reason of a failure, so this makes the same call for JSON. */
  async #findReason() {
    this.stop();
    const attempt = this.attempt;
    this.on.state("lost", "not connected");
    let problem = { detail: "no answer from sessiond" };
    try {
      const answer = await fetch(this.path, { headers: { Accept: "application/json" }, cache: "no-store" });
      problem = answer.ok ? null : { ...(await answer.json()), status: answer.status };
    } catch {
      // No answer: `problem` already says so.
    }
    if (attempt === this.attempt) this.#lost(problem);
  }

  #lost(problem) {
    this.stop();
    if (problem?.status === 401) {
      this.on.signIn();
      return;
    }
    const wait = problem?.status === 403 || problem?.status === 400 ? LONGEST : Math.min(LONGEST, 250 * 2 ** this.tries);
    this.tries += 1;
    this.on.state("lost", problem ? problem.detail : "reconnecting");
    this.#reconnect(wait * (0.75 + Math.random() / 2));
  }

  #check() {
    if (this.source && this.lastData && Date.now() - this.lastData > STALE) this.#lost({ detail: "no data from sessiond" });
  }
}
