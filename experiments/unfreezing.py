"""From how many sentences does unfreezing pay? And does gradual unfreezing beat unfreezing at once?

    python -m experiments.unfreezing --workdir DIR      # some 430 runs; about a day on two cores

On 64, 256 and 1,024 sentences of the default corpus, six seeds: unfreezing pays already with
64, and gradual unfreezing is worse than unfreezing at once over the three sizes.
``experiments/README.md`` has the command of that run, some four hours on two cores beside
other work, and its numbers.
"""

import sys

from mtl_jax.studies.builtin import unfreezing

main = unfreezing.main.called_as("python -m experiments.unfreezing")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
