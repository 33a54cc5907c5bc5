"""One task has few labels: what does it buy to freeze its head at first, or to train it last?

    python -m experiments.scarce_task --workdir DIR     # 180 runs; about a day on two cores

With 4 to 384 labels of 384 sentences, six seeds: freezing the scarce head bought nothing that
could be seen, training it last cost 0.07 of macro-F1 with 115 labels or more, but with half as
many updates on them; arms have equal ones since. ``experiments/README.md`` has the command, some
80 minutes on two cores, and the numbers.
"""

import sys

from mtl_jax.studies.builtin import scarce_task

main = scarce_task.main.called_as("python -m experiments.scarce_task")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
