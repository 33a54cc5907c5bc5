"""A process that has PyTorch: loads exported folders, takes a step, and saves what it has.

    python in_torch.py JOBS.json OUTPUT.npz

A job is an object: ``folder``, ``trusted``, ``texts`` and, where a step is taken, ``further``,
where to save; or ``program``, a text that comes to ``logits``.
"""

import json
import sys

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def arrays(model):
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}


def main(jobs, output):
    torch.manual_seed(0)
    found, told = {}, []
    for i, job in enumerate(jobs):
        if "program" in job:
            exec(job["program"], names := {})  # noqa: S102
            found[f"{i}/logits"] = names["logits"].detach().numpy()
            told.append({})
            continue
        how = {"trust_remote_code": job["trusted"]}
        tokenizer = AutoTokenizer.from_pretrained(job["folder"], **how)
        try:
            model, loaded = AutoModelForSequenceClassification.from_pretrained(
                job["folder"], output_loading_info=True, **how
            )
        except ValueError as error:
            told.append({"refused": str(error)})
            continue
        batch = tokenizer(job["texts"], truncation=True, padding=True, return_tensors="pt")
        with torch.no_grad():
            found[f"{i}/logits"] = model.eval()(**batch).logits.float().numpy()
        config = model.config
        told.append(
            {
                "class": type(model).__name__,
                "dtype": str(model.dtype),
                "keys": {name: sorted(map(str, keys)) for name, keys in loaded.items() if keys},
                "id2label": config.id2label,
                "label2id": config.label2id,
                "problem_type": config.problem_type,
                "outputs": config.num_labels,
            }
        )
        if "further" in job:
            found |= {f"{i}/before/{name}": array for name, array in arrays(model).items()}
            optimizer = torch.optim.AdamW(model.train().parameters(), 1e-2)
            labels = torch.arange(len(job["texts"])) % config.num_labels
            model(**batch, labels=labels).loss.backward()
            optimizer.step()
            model.save_pretrained(job["further"])
            tokenizer.save_pretrained(job["further"])
            found |= {f"{i}/after/{name}": array for name, array in arrays(model).items()}
            with torch.no_grad():
                found[f"{i}/logits after"] = model.eval()(**batch).logits.numpy()
    np.savez(output, **found)
    print(json.dumps(told))


if __name__ == "__main__":
    with open(sys.argv[1]) as file:  # noqa: PTH123
        main(json.load(file), sys.argv[2])
