// onnxruntime-web in Node: WebAssembly on one thread. As harness.py, in JavaScript:
// node onnxruntime_web.mjs NODE_MODULES MODEL IMAGES.npy LOGITS.npy SCRATCH_DIR
import fs from "node:fs";
import { createRequire } from "node:module";
import readline from "node:readline";

const [modules, model, imagesPath, logitsPath] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
const ort = require("onnxruntime-web");
const { version } = JSON.parse(fs.readFileSync(`${modules}/onnxruntime-web/package.json`));
const SIZE = 784;

function npyBody(path) {
  const bytes = fs.readFileSync(path);
  return new Uint8Array(bytes.subarray(10 + bytes.readUInt16LE(8))); // format 1.0: 10 bytes, then a header so long
}

function npyOf(logits, shape) {
  let header = `{'descr': '<f4', 'fortran_order': False, 'shape': (${shape.join(", ")}), }`;
  header = header.padEnd(128 - 10 - 1) + "\n";
  const start = Buffer.from([0x93, ...Buffer.from("NUMPY"), 1, 0, header.length, 0]);
  return Buffer.concat([start, Buffer.from(header), Buffer.from(logits.buffer)]);
}

function cpuSeconds() {
  const { user, system } = process.cpuUsage(); // of all threads, in microseconds
  return (user + system) / 1e6;
}

const say = (what) => console.log("\nRESULT " + JSON.stringify(what));

ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(new Uint8Array(fs.readFileSync(model)), { executionProviders: ["wasm"] });
const images = npyBody(imagesPath);
const numImages = images.length / SIZE;

async function run(start, size) {
  const batch = new ort.Tensor("uint8", images.subarray(start * SIZE, (start + size) * SIZE), [size, 1, 28, 28]);
  return (await session.run({ images: batch })).logits.data;
}

const logits = new Float32Array(2 * numImages * 10);
for (const [row, size] of [1, 64].entries())
  for (let start = 0; start < numImages; start += size)
    logits.set(await run(start, Math.min(size, numImages - start)), (row * numImages + start) * 10);
fs.writeFileSync(logitsPath, npyOf(logits, [2, numImages, 10]));
say({ version });

for await (const line of readline.createInterface({ input: process.stdin })) {
  const [size, seconds] = line.split(" ").map(Number);
  const numBatches = Math.floor(numImages / size);
  await run(0, size);
  let numCalls = 0;
  const started = cpuSeconds();
  while (cpuSeconds() - started < seconds) await run((numCalls++ % numBatches) * size, size);
  say({ images_per_s: (numCalls * size) / (cpuSeconds() - started) });
}
process.exit(0);
