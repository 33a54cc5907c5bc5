"""What the commands of ``python -m mtl_jax`` do."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mtl_jax import __version__
from mtl_jax.cli.flags import Check, Command, Evaluate, Export, Extract, Plan, Predict, Train
from mtl_jax.config.data import refuse_blank
from mtl_jax.config.earlier import FLAGS
from mtl_jax.config.files import with_file
from mtl_jax.config.model import DEFAULT_BACKBONE
from mtl_jax.core import distributed, preemption
from mtl_jax.core.command_line import guarded, parse
from mtl_jax.core.errors import UserError, shortened
from mtl_jax.core.paths import expanded
from mtl_jax.core.streams import Descriptor

if TYPE_CHECKING:
    from pathlib import Path

    from mtl_jax.tools.ensemble import Ensemble
    from mtl_jax.tools.predict import Predictor


def run(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit status."""
    return guarded(_main, argv)


def _main(argv: Sequence[str]) -> None:
    if list(argv) == ["--version"]:
        print(f"mtl_jax {__version__}")
        return
    if argv and argv[0] == "study":
        # Its flags are the study's own, and not known here.
        from mtl_jax.cli.study import run_study

        sys.exit(run_study(argv[1:]))
    kinds = {"train": Train, "check": Check, "plan": Plan}
    if argv and argv[0] in kinds:
        # What is checked or planned is a run, whose file of settings serves for that, too.
        argv = [argv[0], *with_file(argv[1:], kinds[argv[0]], of_train=argv[0] != "train")]
    command = parse(Command, argv, "python -m mtl_jax", _DESCRIPTION, FLAGS)
    # No help waits for it.
    from mtl_jax.core.console import say_awaited

    if not (isinstance(command, Train) and command.distributed):
        say_awaited(_AWAITED[type(command)])
    from mtl_jax.runs.startup import import_transformers_alone, prepare

    with preemption.heeded() if isinstance(command, Train) else contextlib.nullcontext():
        if isinstance(command, Check):
            # It runs no step, and what many rows have needed for a while is given back.
            import_transformers_alone()
        else:
            prepare()
        if isinstance(command, Train) and command.distributed:
            distributed.join()
        {
            Train: _train,
            Check: _check,
            Plan: _plan,
            Evaluate: _evaluate,
            Predict: _predict,
            Extract: _extract,
            Export: _export,
        }[type(command)](command)


_WIDEST = 10_000
_AWAITED = {
    Train: "loading the data and the encoder",
    Check: "reading the data",
    Plan: "loading the data and the encoder",
    Evaluate: "loading the model and the data",
    Predict: "loading the model",
    Extract: "loading the encoder",
    Export: "loading the model",
}
_DESCRIPTION = (
    "Fine-tune an encoder on several tasks, with the parts frozen that a scenario names. "
    "--version prints the version."
)


def _train(command: Train) -> None:
    from mtl_jax.cli.summary import show_result, shows_tables
    from mtl_jax.runs.loop import train

    config = command.config()
    if (budget := command.budget) is not None:
        from mtl_jax.studies.tuning.tuned import tuned_run

        config = tuned_run(config, budget)
    result = train(config)
    if not distributed.is_main():
        return
    if shows_tables(json=command.json):
        show_result(command.workdir, result)
    else:
        print(json.dumps(result["test"] or result["validation"]))


def _check(command: Check) -> None:
    from mtl_jax.core.atomic_write import atomic_write, check_place, is_same_file
    from mtl_jax.core.errors import cannot_write
    from mtl_jax.studies.report.render import to_html
    from mtl_jax.tools.check import check

    for name in ("backbone", "html"):
        if (value := getattr(command, name)) is not None:
            refuse_blank(name, [value])
    data = command.data.absolute()
    page = None if command.html is None else expanded(command.html)
    if page is not None:
        check_place(page, "an .html file")
        files = [file for origin in data.origins for _, file in origin.files]
        if any(is_same_file(file, page) for file in files):
            raise UserError(f"--html {page} is a file of the data: name another")
    found = check(
        data,
        command.backbone or DEFAULT_BACKBONE,
        needs_backbone=command.backbone is not None,
    )
    if page is not None:
        try:
            with atomic_write(page) as draft:
                draft.write_text(to_html(found.document()), "utf-8", "backslashreplace")
        except OSError as error:
            raise cannot_write(page, error) from error
    if command.json:
        _print_json([found.record()])
        return
    for line in found.lines():
        print(line)


def _plan(command: Plan) -> None:
    from mtl_jax.core.console import Terminal
    from mtl_jax.tools.plan import TITLE, plan, tables, total_time

    estimates = plan(command, command.scenario or (), command.measure_seconds, command.recipe)
    if command.json:
        for estimate in estimates:
            print(json.dumps(estimate.record()))
        return
    # Only a terminal has a width; a file takes the whole of a row.
    console = Terminal() if sys.stdout.isatty() else Terminal(width=_WIDEST, color_system=None)
    console.print(TITLE, *tables(estimates, console.width), sep="\n")
    if command.recipe:
        print(f"all phases: {total_time(estimates)}")
    for estimate in estimates:
        for warning in estimate.warnings:
            print(f"warning: {estimate.scenario}: {warning}")


def _evaluate(command: Evaluate) -> None:
    from mtl_jax.cli.summary import show_evaluation, shows_tables
    from mtl_jax.core.atomic_write import check_folder
    from mtl_jax.core.console import say
    from mtl_jax.tools.evaluate import evaluate

    output = None
    if command.output is not None:
        refuse_blank("output", [command.output])
        output = expanded(command.output)
        check_folder(output, "--output")
    model = _model(command)
    found = evaluate(model, command.split, output)
    if output is not None:
        say(f"the report is {found.write(output)}")
    if shows_tables(json=command.json):
        show_evaluation(found)
    else:
        _print_json([found.record()])


def _model(command: Predict | Evaluate) -> Predictor | Ensemble:
    """The run that is named, or several together."""
    from mtl_jax.tools.ensemble import Ensemble
    from mtl_jax.tools.predict import Predictor

    if len(command.workdir) == 1:
        return Predictor(command.workdir[0], command.long_texts, trust=command.trust)
    return Ensemble(command.workdir, command.long_texts, trust=command.trust)


def _texts(
    command: Predict | Extract, output: Path | None
) -> Callable[[Sequence[str] | None, Iterable[str]], Iterator[str]]:
    """Opens what the texts come from.

    Args:
        command: The command.
        output: Where to write what they become; None for standard output.

    Returns:
        What reads them, when it is told the columns to read by default, one, two of pairs, or
        None where there are none, and the columns that a header may name.
    """
    from mtl_jax.core.atomic_write import other_kind
    from mtl_jax.core.console import say
    from mtl_jax.tools.input_texts import (
        looks_like_header,
        read_lines,
        read_pairs,
        read_texts,
    )

    named = _named_columns(command)
    if command.input is not None:
        path = expanded(command.input)
        if not command.input or not path.exists():
            raise UserError(f"--input {command.input!r}: there is no such file: correct the path")
        # Pipes and devices can be read.
        if (kind := other_kind(path)) in ("a folder", "a socket"):
            raise UserError(f"--input {command.input!r} is {kind}: name a file")
        _refuse_own_source(path, output)

        def of_file(columns: Sequence[str] | None, known: Iterable[str]) -> Iterator[str]:
            del known
            if columns is None and named is None:
                raise UserError(
                    "the tasks were trained on texts of different columns: name one with "
                    "--text-column, or two with --text-columns"
                )
            return read_texts(path, named, columns or ())

        return of_file
    if named is not None:
        flag = "--text-column" if len(named) == 1 else "--text-columns"
        raise UserError(f"{flag} {' '.join(named)} needs --input: name a file, or leave it out")
    if sys.stdin is None:
        raise UserError("standard input is closed: give it lines of text, or < /dev/null for none")
    try:
        # A reader of its own: the thread that reads may still wait when the process ends, and
        # the interpreter can't close its own standard input then.
        stream = io.BufferedReader(Descriptor(sys.stdin.fileno(), closefd=False))
    except OSError as error:
        raise UserError(
            f"standard input can't be read ({error.strerror}): give it lines of text"
        ) from error
    _refuse_own_source(stream.fileno(), output)

    def of_lines(columns: Sequence[str] | None, known: Iterable[str]) -> Iterator[str]:
        if columns is not None and len(columns) == 2:
            yield from read_pairs(read_lines(stream), columns)
            return
        for number, line in enumerate(read_lines(stream)):
            if number == 0 and looks_like_header(line, known):
                say(
                    f"warning: the first line, {shortened(line, 80)!r}, looks like the header of a "
                    "table; read a table with --input FILE --text-column COLUMN"
                )
            yield line

    return of_lines


def _refuse_own_source(source: Path | int, output: Path | None) -> None:
    """Refuses to write over the texts, or behind them, where the answers would be read as texts.

    Args:
        source: The file of the texts, or the number of the open one.
        output: As of ``_texts``.
    """
    from mtl_jax.core.atomic_write import is_same_file

    place: Path | int | None = output
    if place is None:
        # Something else than a file may stand in its place.
        with contextlib.suppress(OSError):
            place = sys.stdout.fileno()
    if place is not None and is_same_file(source, place):
        name = "standard output" if output is None else f"--output {output}"
        raise UserError(f"{name} is the file that the texts are read from: name another")


def _named_columns(command: Predict | Extract) -> tuple[str, ...] | None:
    """The columns of the text that the flags name, one or two; None where they name none."""
    one, pair = command.text_column, command.text_columns
    if one is not None and pair:
        raise UserError(
            "--text-column and --text-columns both say where the texts are: leave one of them out"
        )
    if pair and (len(pair) != 2 or pair[0] == pair[1]):
        raise UserError(
            f"--text-columns {' '.join(pair)}: name the two columns of a pair, or one with "
            "--text-column"
        )
    return pair or (None if one is None else (one,))


def _predict(command: Predict) -> None:
    from mtl_jax.core.console import say

    texts = _texts(command, None)
    model = _model(command)
    _print_json(model.answers(texts(model.text_columns, model.columns)))
    if model.cut or model.empty:
        say(
            f"{model.cut} texts were cut to {model.reader.max_length} tokens, {model.empty} were "
            "empty"
        )


def _print_json(lines: Iterable[Mapping[str, Any]]) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # whatever the locale: it is JSON
    for line in lines:
        print(json.dumps(line, ensure_ascii=False))


def _extract(command: Extract) -> None:
    from mtl_jax.core.console import say
    from mtl_jax.tools.predict import Predictor
    from mtl_jax.tools.text_encoder import load_text_encoder
    from mtl_jax.tools.vectors import check_vector_file, write_vectors

    if command.backbone is not None:
        refuse_blank("backbone", [command.backbone])
    refuse_blank("output", [command.output])
    output = expanded(command.output)
    check_vector_file(output)
    texts = _texts(command, output)
    columns: Sequence[str] | None = ("text",)
    known: Iterable[str] = columns
    if command.workdir is not None:
        if (command.backbone, command.max_length) != (None, None):
            raise UserError(
                "--workdir already determines --backbone and --max-length: leave them out"
            )
        encoder = Predictor(
            command.workdir,
            command.long_texts,
            trust=command.trust,
            layer=command.layer,
            pooling=command.pooling,
            dtype=command.dtype,
        )
        columns, known = encoder.text_columns, encoder.columns
    else:
        encoder = load_text_encoder(
            command.backbone or DEFAULT_BACKBONE,
            command.pooling,
            128 if command.max_length is None else command.max_length,
            command.long_texts or "cut",
            command.layer,
            command.dtype or "float32",
        )
    rows = write_vectors(output, encoder.pooled(texts(columns, known)), encoder.width)
    say(
        f"wrote {rows} vectors of width {encoder.width} to {command.output}; {encoder.cut} texts "
        f"were cut to {encoder.reader.max_length} tokens, {encoder.empty} were empty"
    )


def _export(command: Export) -> None:
    from mtl_jax.core.console import say
    from mtl_jax.tools.export.command import export

    folder = export(
        command.workdir,
        command.output,
        command.format,
        dtype=command.dtype,
        tasks=command.tasks,
        trust=command.trust,
        push_to_hub=command.push_to_hub,
        private=command.private,
    )
    say(f"wrote {command.format} to {folder}")
