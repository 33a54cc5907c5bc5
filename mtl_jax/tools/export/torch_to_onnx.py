"""Writes the ONNX model of a folder that transformers loads, with PyTorch's own exporter.

    python torch_to_onnx.py FOLDER MODEL.onnx LENGTH

LENGTH is that of the longest texts.

A process of its own runs this: the one that exports has loaded transformers without PyTorch.
"""

import sys

import torch
from transformers import AutoModelForSequenceClassification


class Logits(torch.nn.Module):
    """A classifier as a function of two arrays, int64 [batch, length]."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        """Returns float32 [batch, outputs]."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def main(folder, target, longest):
    """Writes the file."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    # Of any batch and any length but 0 and 1, which torch.export takes for constants.
    ids = torch.ones((2, 3), dtype=torch.int64)
    # Of a mask that hides nothing transformers would make none.
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    batch = torch.export.Dim("batch")
    length = torch.export.Dim("length", max=int(longest))
    names = ["input_ids", "attention_mask"]
    torch.onnx.export(
        Logits(model).eval(),
        (ids, mask),
        target,
        input_names=names,
        output_names=["logits"],
        dynamic_shapes={name: {0: batch, 1: length} for name in names},
        dynamo=True,
        external_data=False,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
