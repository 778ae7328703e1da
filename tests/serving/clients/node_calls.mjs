// grpc-js with the .proto files as they are: node node_calls.mjs NODE_MODULES TARGET PROTOS IMAGES, the last a file of raw images.
// Prints the labels by Classify and by ModelInfer.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [modules, target, protos, file] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const load = (name) => grpc.loadPackageDefinition(loader.loadSync(`${protos}/${name}`, { keepCase: true }));
const credentials = grpc.credentials.createInsecure();
const classifier = new (load("classifier.proto").atelier.v1.Classifier)(target, credentials);
const inference = new (load("open_inference.proto").inference.GRPCInferenceService)(target, credentials);
const ask = (client, method, request) =>
  new Promise((resolve, reject) =>
    client[method](request, { deadline: Date.now() + 10_000 }, (error, reply) => (error ? reject(error) : resolve(reply))),
  );

const images = readFileSync(file);
const count = images.length / 784;
const classified = await ask(classifier, "Classify", { images });
const inferred = await ask(inference, "ModelInfer", {
  model_name: "lenet5",
  inputs: [{ name: "images", datatype: "UINT8", shape: [count, 1, 28, 28] }],
  outputs: [{ name: "logits" }],
  raw_input_contents: [images],
});
const bytes = inferred.raw_output_contents[0];
const labels = Array.from({ length: count }, (_, image) => {
  const row = Array.from({ length: 10 }, (_, label) => bytes.readFloatLE(40 * image + 4 * label));
  return row.indexOf(Math.max(...row));
});
console.log(JSON.stringify([classified.classifications.map((one) => one.predictions[0].label), labels]));
