"""What is said of flags that are wrong: one line with the flag and the remedy."""

import pytest

from mtl_jax.cli.commands import run
from mtl_jax.core.command_line import guarded
from mtl_jax.launch.__main__ import main as launch

ALL = "train, check, plan, evaluate, predict, extract, export or study"
HELP = "python -m mtl_jax train --help"
RATES = "--head-learning-rate, --backbone-learning-rate or --lora-learning-rate"
WRONG = {
    "": f"a command is missing: use {ALL}",
    "trian --workdir x": f"there is no command 'trian': did you mean train? use {ALL}",
    "--verson": f"there is no command '--verson': did you mean --version? use {ALL}",
    "train": f"--workdir is missing: see {HELP}",
    "train --workdir": f"--workdir needs a value: see {HELP}",
    # A flag that is misspelt is told, not that it is missing.
    "train --workdr x": f"there is no flag --workdr: did you mean --workdir? {HELP} lists all",
    "train -workdir x": f"there is no flag -workdir: did you mean --workdir? {HELP} lists all",
    "train --workdir x --Epochs=2": f"there is no flag --Epochs: did you mean --epochs? {HELP} "
    "lists all",
    "train --workdir x --epoch 2 --scenari top_1": "there are no flags --epoch and --scenari: did "
    f"you mean --epochs and --scenario? {HELP} lists all",
    "train --workdir x --xyzzy 1": f"there is no flag --xyzzy: {HELP} lists all",
    "train --workdir x --learning-rate 1": f"there is no flag --learning-rate: did you mean {RATES}"
    f"? {HELP} lists all",
    "train --workdir x --sentiment-weight 2": "there is no flag --sentiment-weight: did you mean "
    f"--task-weights sentiment=NUMBER? {HELP} lists all",
    "train --workdir x hello": "'hello' is not expected here: a value stands behind its flag, see "
    f"{HELP}",
    "train --workdir x --remat yes": "'yes' is not expected here: a value stands behind its flag, "
    f"see {HELP}",
    "train --workdir x --parallel foo": "--parallel 'foo' is not known: use auto, jit, pmap or "
    "mesh",
    "train --workdir x --seed 1.5": f"--seed 1.5 is not a whole number: see {HELP}",
    "train --workdir x --epochs many": f"--epochs many is not a whole number or None: see {HELP}",
    "train --workdir x --warmup_fraction=a": f"--warmup_fraction=a is not a number: see {HELP}",
    "plan --workdir x": "there is no flag --workdir: python -m mtl_jax plan --help lists all",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_mistake_is_told_with_its_remedy(line, capsys):
    assert run(line.split()) == 2
    assert capsys.readouterr().err == f"error: {WRONG[line]}\n"


def launched(argv):
    return guarded(launch, argv)


def test_of_studies_and_launchers_too(capsys):
    for main, line, words in (
        (
            run,
            "study freezing --workdir x --sed 1",
            "did you mean --seeds? mtl-jax study freezing --h",
        ),
        (
            run,
            "study freezing --workdir x --seeds a b",
            "--seeds a b is not whole numbers: see mtl-jax",
        ),
        (
            run,
            "study judge",
            "one word is missing, for the folder of the study, or the folder in which",
        ),
        (
            launched,
            "slrum -- train",
            "there is no command 'slrum': did you mean slurm? use local, ",
        ),
        (
            launched,
            "local --task 2 -- train",
            "did you mean --tasks? ./launch.sh local --help lists",
        ),
    ):
        assert main(line.split()) == 2
        told = capsys.readouterr().err
        assert words in told
        assert told.count("\n") == 1
