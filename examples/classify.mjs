// Classify texts with an exported model in Node, without Python.
//
//     npm install onnxruntime-node @huggingface/tokenizers
//     node classify.mjs FOLDER < lines    # FOLDER is an export folder, a line is a text
//
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { Tokenizer } from "@huggingface/tokenizers";
import ort from "onnxruntime-node";

const [folder] = process.argv.slice(2);
const read = (name) => JSON.parse(readFileSync(`${folder}/${name}`, "utf8"));
const tokenizer = new Tokenizer(read("tokenizer.json"), read("tokenizer_config.json"));
const labels = read("config.json").id2label;
const session = await ort.InferenceSession.create(`${folder}/model.onnx`);

for await (const text of createInterface({ input: process.stdin })) {
  const { ids, attention_mask } = tokenizer.encode(text);
  const encoded = { input_ids: ids, attention_mask, token_type_ids: ids.map(() => 0) };
  const tensor = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
  const feeds = Object.fromEntries(session.inputNames.map((name) => [name, tensor(encoded[name])]));
  const { logits } = await session.run(feeds);
  const scores = Array.from(logits.data);
  const best = scores.indexOf(Math.max(...scores));
  console.log(`${labels[best]}\t${scores.map((score) => score.toFixed(5)).join(" ")}`);
}
