"""From how many sentences on does unfreezing pay? Is gradual unfreezing better than at once?

    python -m experiments.unfreezing --workdir DIR      # some 430 runs; about a day on two cores

``experiments/README.md`` has the results of runs on the present code.
"""

import sys

from mtl_jax.studies.builtin import unfreezing

main = unfreezing.main.called_as("python -m experiments.unfreezing")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
