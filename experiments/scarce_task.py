"""One task has few labels: does it help to freeze its head at first, or to train it last?

    python -m experiments.scarce_task --workdir DIR     # 180 runs; about a day on two cores

Every arm makes equally many updates on the labels of the scarce task. ``experiments/README.md`` has
the results of runs on the present code.
"""

import sys

from mtl_jax.studies.builtin import scarce_task

main = scarce_task.main.called_as("python -m experiments.scarce_task")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
