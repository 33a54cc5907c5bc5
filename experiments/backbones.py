"""What does a larger backbone buy, and how much of it must be trained?

    python -m experiments.backbones --workdir DIR       # --backbones names the checkpoints

``experiments/README.md`` has the results of runs on the present code.
"""

import sys

from mtl_jax.studies.builtin import backbones

main = backbones.main.called_as("python -m experiments.backbones")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
