"""Does a warm-up help where the top two layers train?

python experiments/examples/own_study.py --workdir runs/warmup --seeds 0 1 2 3
./launch.sh local -- experiment experiments/examples/own_study.py --workdir runs/warmup
"""

import sys

import mtl_jax as mtl

ARMS = {
    "no_warmup": {"scenario": "top_2", "warmup_fraction": 0.0},
    "warmup": {"scenario": "top_2", "warmup_fraction": 0.1},
    "long_warmup": {"scenario": "top_2", "warmup_fraction": 0.5},
}

main = mtl.studies.study(ARMS, __doc__)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
