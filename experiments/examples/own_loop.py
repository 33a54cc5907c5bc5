r"""Train the top two layers and a head per task in a loop of one's own.

    python experiments/examples/own_loop.py --train train.csv --validation dev.csv \
        --tasks topic=topic mood=mood
"""

import argparse

import mtl_jax as mtl


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--train", required=True)
    parser.add_argument("--validation")
    parser.add_argument("--tasks", nargs="+", required=True, metavar="TASK[=COLUMN]")
    parser.add_argument("--scenario", default="top_2")
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args(argv)

    encoder = mtl.load_encoder(args.backbone)
    files = {"train": args.train, "validation": args.validation}
    tasks = dict(pair.partition("=")[::2] for pair in args.tasks)
    data = mtl.load_data(**files, tasks=tasks, encoder=encoder)
    model = mtl.MultiTaskModel(encoder, data.tasks)
    partition = mtl.Partition(model.params, args.scenario)
    batches = data.train_batches(batch_size=32, epochs=args.epochs, seed=0)
    optimizer = mtl.make_optimizer(partition, {"head": 3e-3, "backbone": 1e-4}, len(batches))
    step = mtl.TrainStep(model, partition, optimizer)
    state = step.init(seed=0)
    for batch in batches:
        state, metrics = step(state, batch)
        print(f"loss {metrics['loss']}")
    return mtl.evaluate(model, step.params(state), data.validation)


if __name__ == "__main__":
    for task, scores in main().items():
        print(f"{task}: accuracy {scores['accuracy']:.3f}, macro-F1 {scores['macro_f1']:.3f}")
