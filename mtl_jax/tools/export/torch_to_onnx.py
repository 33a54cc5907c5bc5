"""Writes the ONNX model of a folder that transformers loads, with PyTorch's own exporter.

    python torch_to_onnx.py FOLDER MODEL.onnx LENGTH INPUT...

LENGTH is that of the longest texts, and the inputs are ``input_ids``, ``attention_mask`` and maybe
``token_type_ids``.

A process of its own runs this: the one that exports has loaded transformers without PyTorch.
"""

import sys

import torch
from transformers import AutoModelForSequenceClassification


class Logits(torch.nn.Module):
    """A classifier as a function of its inputs, int64 [batch, length]."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        """Returns float32 [batch, outputs]."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits


def main(folder, target, longest, *names):
    """Writes the file."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    # Of any batch and any length but 0 and 1, which torch.export takes for constants.
    ids = torch.ones((2, 3), dtype=torch.int64)
    # Of a mask that hides nothing transformers would make none.
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    batch = torch.export.Dim("batch")
    length = torch.export.Dim("length", max=int(longest))
    torch.onnx.export(
        Logits(model).eval(),
        (ids, mask, torch.zeros_like(ids))[: len(names)],
        target,
        input_names=list(names),
        output_names=["logits"],
        dynamic_shapes={name: {0: batch, 1: length} for name in names},
        dynamo=True,
        external_data=False,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
