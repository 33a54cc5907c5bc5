"""Ask a trained folder about a few texts.

python experiments/examples/predict_texts.py runs/mine "a text" "another"
"""

import sys

import mtl_jax as mtl


def main(folder, *texts):
    for answer in mtl.Predictor(folder).predict(texts):
        labels = {task: found for task, found in answer.items() if task != "text"}
        words = (
            f"{task} {each['label']} ({each['probability']:.2f})" for task, each in labels.items()
        )
        print(f"{answer['text']}: {', '.join(words)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
