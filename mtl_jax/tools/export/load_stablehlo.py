"""Loads the model beside this file: jax, flatbuffers, numpy, safetensors and tokenizers do."""

import json
import sys
from pathlib import Path

import numpy as np
from jax import export
from safetensors.numpy import load_file
from tokenizers import Tokenizer

folder = Path(__file__).parent
model = export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
weights = load_file(folder / "model.safetensors")
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tasks = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))


def logits(texts):
    """Per task float32 [texts, outputs], whose names ``tasks`` has; a pair of texts is a tuple."""
    encoded = tokenizer.encode_batch(texts)
    names = ("ids", "attention_mask", "type_ids")[: len(model.in_avals) - len(weights)]
    arrays = (np.array([getattr(each, name) for each in encoded], np.int32) for name in names)
    found = model.call(weights, *arrays)
    return {task: np.asarray(found[task]) for task in tasks}


if __name__ == "__main__":
    pairs = any(task["pairs"] for task in tasks.values())
    for line in sys.stdin:
        # A pair is a line of JSON, ["a", "b"].
        text = tuple(json.loads(line)) if pairs else line.removesuffix("\n")
        answer = {task: found[0].tolist() for task, found in logits([text]).items()}
        print(json.dumps({"text": text} | answer, ensure_ascii=False))
