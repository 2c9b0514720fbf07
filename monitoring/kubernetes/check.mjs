// Checks manifests against the schemas of Kubernetes and of the Prometheus operator. It accepts fields
// that do not exist; monitoring/check looks for those of Kubernetes itself by another tool. It copies
// this file beside the packages that it needs, and runs it: node check.mjs FOLDER-OF-MANIFESTS
import { PodMonitor, PrometheusRule } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";
import { Deployment } from "kubernetes-models/apps/v1";
import { NetworkPolicy } from "kubernetes-models/networking.k8s.io/v1";
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { parse } from "yaml";

const folder = process.argv[2];
const models = { Deployment, NetworkPolicy, PodMonitor, PrometheusRule };

/** The errors of a manifest. */
function errors(manifest) {
  const Model = models[manifest.kind];
  if (!Model) return [`no schema for the kind ${manifest.kind}`];
  if (manifest.apiVersion !== Model.apiVersion) return [`apiVersion is ${Model.apiVersion}`];
  try {
    new Model(manifest).validate();
    return [];
  } catch (error) {
    return [error.message];
  }
}

let failed = 0;
const expect = (what, holds, detail) => {
  console.log(`${holds ? "ok" : "FAILED"} ${what}${holds ? "" : `: ${detail}`}`);
  failed += holds ? 0 : 1;
};
const files = readdirSync(folder).filter((file) => file.endsWith(".yaml"));
const read = (file) => parse(readFileSync(join(folder, file), "utf8"));
const manifests = Object.fromEntries(files.map((file) => [file, read(file)]));
for (const [file, manifest] of Object.entries(manifests)) {
  const found = errors(manifest);
  expect(file, found.length === 0, found.join("; "));
}

// A check that refuses nothing shows nothing.
const broken = [
  ["a port that is no port", "deployment.yaml", (it) => {
    it.spec.template.spec.containers[0].ports[1].containerPort = "stall";
  }],
  ["an endpoint with a wrong scheme", "podmonitor.yaml", (it) => {
    it.spec.podMetricsEndpoints[0].scheme = "ftp";
  }],
  ["a rule without an expression", "prometheusrule.yaml", (it) => {
    delete it.spec.groups[0].rules[0].expr;
  }],
];
for (const [what, file, breaks] of broken) {
  const copy = structuredClone(manifests[file]);
  breaks(copy);
  expect(`refused: ${what}`, errors(copy).length > 0, "it was accepted");
}
process.exit(failed === 0 && files.length >= 4 ? 0 : 1);
