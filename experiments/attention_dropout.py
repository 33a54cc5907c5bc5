r"""What do attention weights without dropout cost, where its output has that in their place?

    python -m experiments.attention_dropout --workdir runs/attention-dropout --seeds 0 1 2 3 4 5 \
        --epochs 3 --max-train-examples 256 --max-validation-examples 320 --max-test-examples 1200

Full fine-tuning with the checkpoint's dropout of the attention weights, with as much of what they
mix (``--attention-dropout-on output``), and with none. Only the latter two can use cuDNN's fused
attention in training.
"""

import sys

from mtl_jax.studies.own import study

ARMS = {
    "none_frozen": {"scenario": "none_frozen"},
    "on_output": {"scenario": "none_frozen", "attention_dropout_on": "output"},
    "no_attention_dropout": {"scenario": "none_frozen", "attention_dropout": 0.0},
}

main = study(ARMS, __doc__, "python -m experiments.attention_dropout")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
