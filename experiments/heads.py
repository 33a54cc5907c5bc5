"""How should the heads of a frozen backbone be trained?

    python -m experiments.heads --workdir DIR           # 192 pairs of heads in one program

``train`` makes a small sweep of this kind by itself where the backbone is frozen.
"""

import sys

from mtl_jax.studies.builtin import heads

main = heads.main.called_as("python -m experiments.heads")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
