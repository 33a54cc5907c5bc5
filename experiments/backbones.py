"""What does a larger backbone buy, and how much of it must be trained?

    python -m experiments.backbones --workdir DIR       # not run at full size yet: it needs the hub

On 384 sentences the lower three of the default checkpoint's six layers did as well as all six
while frozen; trained, all six were better by 0.036 of macro-F1 (``experiments/README.md``).
"""

import sys

from mtl_jax.studies.builtin import backbones

main = backbones.main.called_as("python -m experiments.backbones")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
