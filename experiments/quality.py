"""What raises quality? Soft labels, an auxiliary task, averaged weights, R-Drop, longer training.

    python -m experiments.quality --workdir DIR         # seven arms, six seeds, the whole corpus

Each arm changes one thing of full fine-tuning; ``--arms soft_labels+r_drop`` changes several.
"""

import sys

from mtl_jax.studies.builtin import quality

main = quality.main.called_as("python -m experiments.quality")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
