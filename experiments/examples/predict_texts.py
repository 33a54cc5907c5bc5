"""Ask a trained folder about a few texts.

python experiments/examples/predict_texts.py runs/mine "a text" "another"
"""

import argparse
import sys

import mtl_jax as mtl


def in_words(answer):
    if "value" in answer:
        return f"{answer['value']:.2f}"
    if "labels" in answer:
        return " and ".join(answer["labels"]) or "none"
    return f"{answer['label']} ({answer['probability']:.2f})"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("texts", nargs="+")
    args = parser.parse_args(argv)
    for answer in mtl.Predictor(args.folder).predict(args.texts):
        text = answer.pop("text")
        print(f"{text}: {', '.join(f'{task} {in_words(each)}' for task, each in answer.items())}")


if __name__ == "__main__":
    try:
        main()
    except mtl.UserError as error:
        sys.exit(f"error: {error}")
