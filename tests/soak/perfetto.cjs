// Perfetto's own engine, as its user interface runs it in a worker, run by node instead.
//
// node perfetto.cjs FOLDER REQUEST REPLY: give the engine in FOLDER the bytes of the file REQUEST,
// write what it answers to the file REPLY. Read test_perfetto.py for what the bytes are.

const fs = require("fs");
const path = require("path");
const vm = require("vm");

const [folder, request, reply] = process.argv.slice(2);
const { exit, stderr } = process;
const read = (url) => fs.readFileSync(path.join(folder, path.basename(String(url))));

// What a worker has, as far as the engine asks for it.
globalThis.self = globalThis;
globalThis.WorkerGlobalScope = function () {};
globalThis.location = { href: "http://localhost/engine_bundle.js", protocol: "http:", host: "localhost" };
globalThis.addEventListener = () => {};
globalThis.importScripts = () => {};
globalThis.ErrorEvent = class {};
globalThis.PromiseRejectionEvent = class {};
globalThis.XMLHttpRequest = class {
  open(_, url) {
    this.url = url;
  }
  send() {
    this.response = new Uint8Array(read(this.url)).buffer;
  }
};
process.on("uncaughtException", (error) => {
  stderr.write(`${error.message}\n`);
  exit(1);
});
// Or the engine takes this for node, which it was not built for.
Object.defineProperty(globalThis, "process", { value: undefined, configurable: true });

vm.runInThisContext(read("engine_bundle.js").toString(), { filename: "engine_bundle.js" });
const answers = [];
const port = { postMessage: (bytes) => answers.push(Buffer.from(bytes)) };
globalThis.onmessage({ data: port });
setTimeout(() => {
  port.onmessage({ data: new Uint8Array(fs.readFileSync(request)) }); // returns when all is answered
  fs.writeFileSync(reply, Buffer.concat(answers));
  exit(0);
});
