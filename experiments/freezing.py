"""Which parts of the model should be frozen?

    python -m experiments.freezing --workdir DIR        # 28 runs; some minutes on two cores

The README has the answers of this study, with their time and machine.
"""

import sys

from mtl_jax.studies.builtin import freezing

main = freezing.main.called_as("python -m experiments.freezing")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
