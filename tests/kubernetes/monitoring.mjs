// Holds the objects for prometheus-operator, a JSON array on standard input, to the types made of its definitions. They do
// not notice unknown fields. Run as: node monitoring.mjs DIRECTORY-OF-NODE-MODULES
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const types = await import(
  pathToFileURL(resolve(process.argv[2], "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/index.js"))
);
for (const object of JSON.parse(readFileSync(0, "utf8"))) {
  // Throws with what is wrong.
  new types[object.kind](object).validate();
  console.log(`valid: ${object.kind} ${object.metadata.name}`);
}
