// The stream: connects, connects again by itself, and knows when what is shown may be old.

const STALE = 12_000; // a beat comes every 5 s
const LONGEST = 8_000;

/** Calls `on.event(name, data)`, `on.state("live" | "connecting" | "lost", why)`, `on.signIn()`. */
export class Live {
  constructor(on) {
    this.on = on;
    this.session = null;
    this.source = null;
    this.tries = 0;
    this.heard = 0;
    this.retry = null;
    this.attempt = 0;
    setInterval(() => this.#check(), 1_000);
    addEventListener("online", () => this.#again(0));
    document.addEventListener("visibilitychange", () => document.hidden || this.#check());
  }

  /** Follows this session in detail (null: none), on a new stream. */
  follow(session) {
    this.session = session;
    this.tries = 0;
    this.#again(0);
  }

  stop() {
    this.attempt += 1;
    clearTimeout(this.retry);
    this.source?.close();
    this.source = null;
    this.heard = 0;
  }

  get path() {
    return this.session ? `/v1/board?session=${encodeURIComponent(this.session)}` : "/v1/board";
  }

  #again(wait) {
    this.stop();
    this.retry = setTimeout(() => this.#open(), wait);
  }

  #open() {
    const source = new EventSource(this.path);
    this.source = source;
    this.heard = Date.now();
    for (const name of ["hello", "session", "gone", "detail", "handoffs", "beat"]) {
      source.addEventListener(name, (event) => {
        if (source !== this.source) return;
        this.heard = Date.now();
        this.tries = 0;
        this.on.event(name, JSON.parse(event.data));
        this.on.state("live");
      });
    }
    source.addEventListener("problem", (event) => source === this.source && this.#lost(JSON.parse(event.data)));
    source.addEventListener("error", () => source === this.source && this.#ask());
  }

  /** An EventSource does not say why it failed; the same call in one piece does. */
  async #ask() {
    this.stop();
    const attempt = this.attempt;
    this.on.state("lost", "not connected");
    let problem = { detail: "sessiond does not answer" };
    try {
      const answer = await fetch(this.path, { headers: { Accept: "application/json" }, cache: "no-store" });
      problem = answer.ok ? null : { ...(await answer.json()), status: answer.status };
    } catch {
      // It stays what it is: nobody answers.
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
    this.on.state("lost", problem ? problem.detail : "connecting again");
    this.#again(wait * (0.75 + Math.random() / 2));
  }

  #check() {
    if (this.source && this.heard && Date.now() - this.heard > STALE) this.#lost({ detail: "the stream fell silent" });
  }
}
