// Every example payload, signed by GitHub's own community's implementation: one JSON line each.
import { createRequire } from "node:module";
import { sign } from "@octokit/webhooks-methods";

const require = createRequire(import.meta.url);
const places = ["api.github.com", "ghes-31", "ghes-32", "ghes-33", "ghes-34", "ghes-35"];
for (const place of places) {
  for (const { name, examples } of require(`@octokit/webhooks-examples/${place}/index.json`)) {
    for (const example of examples) {
      const body = JSON.stringify(example);
      console.log(JSON.stringify({ name, body, signature: await sign(process.argv[2], body) }));
    }
  }
}
