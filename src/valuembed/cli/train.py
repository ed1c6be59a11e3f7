"""The command ``train``: fine-tune a model's vectors on pairs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from valuembed.cli.fields import Fields
from valuembed.cli.framework import command, quiet, slow_imports
from valuembed.cli.options import BUNDLED, INPUT, MODEL, OUTPUT, ModelArgument, json_option
from valuembed.cli.output import keeps, new_table, note, out, print_json, print_table
from valuembed.training import TrainSettings

TRAIN = "Train"
TRAINING = "Training"
ORDER = (
    "epochs",
    "steps",
    "batch_size",
    "mini_batch",
    "learning_rate",
    "temperature",
    "scope",
    "rank",
    "dropout",
    "matryoshka",
    "query_prompt",
    "document_prompt",
    "seed",
    "save_every",
    "eval_every",
    "checkpointing",
)
"""Of the options that say how to train, in the help: the instructions among those that are fields."""


@command(
    panel=TRAIN,
    order=ORDER,
    examples=(
        "valuembed train --pairs examples/pairs.jsonl -o trained --steps 6 --batch-size 8",
        'valuembed similarity "Can I pay by card?" "Do you take credit cards?" --model trained',
    ),
)
def train(
    options: dict[str, Any],
    settings: Annotated[dict[str, Any], Fields(TrainSettings, TRAINING)],
    model: ModelArgument = BUNDLED,
    pairs: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="The texts that belong together: .jsonl, .csv or .parquet, with columns such as anchor, positive and, "
            "for hard negatives, negative.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ] = ...,  # type: ignore[assignment]
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="The folder for the trained model.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = ...,  # type: ignore[assignment]
    method: Annotated[
        str | None,
        typer.Option(
            help="The method whose vectors are trained, or a recipe file (.json). The usual baseline is hidden_mean. "
            "By default it is va, or what a saved model was saved with.",
            rich_help_panel=MODEL,
            show_default=False,
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN ...",
            help="The columns of the file that are read: the anchor, the positive, then any hard negatives.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ] = None,
    evaluation: Annotated[
        str | None,
        typer.Option(
            "--eval",
            metavar="sts:FILE",
            help="Score the model on these pairs before, during and after the training.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ] = None,
    query_prompt: Annotated[
        str | None,
        typer.Option(
            help="The instruction that anchors are embedded with.", rich_help_panel=TRAINING, show_default=False
        ),
    ] = None,
    document_prompt: Annotated[
        str | None,
        typer.Option(
            help="The instruction that all other texts are embedded with.",
            rich_help_panel=TRAINING,
            show_default=False,
        ),
    ] = None,
    merged: Annotated[
        bool,
        typer.Option("--merged", help="Save a whole model with the adapters in its weights.", rich_help_panel=OUTPUT),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace the model in the folder of -o if there is one.", rich_help_panel=OUTPUT
        ),
    ] = False,
    as_json: Annotated[bool, json_option("Print the record of the training as JSON.")] = False,
) -> None:
    """Fine-tune a model on pairs of texts that belong together: adapters only, the model's weights stay.

    Stopped at any moment, it goes on from its last checkpoint when it is started again. Several processes:
    accelerate launch --num_processes N -m valuembed train ...
    """
    with slow_imports():
        from valuembed.training import STATE, is_first_process, train as run

    first = is_first_process()
    if first:
        note(model)
    quiet()
    given = {"query": query_prompt, "document": document_prompt}
    state = output.with_name(output.name + STATE)
    with keeps(
        state, "the last checkpoint is kept, the same command goes on from there", "checkpoint-*/trainer_state.json"
    ):
        made = run(
            model,
            pairs,
            method,
            output=output,
            columns=columns or None,
            evaluation=evaluation,
            prompts={role: prompt for role, prompt in given.items() if prompt},
            merged=merged,
            overwrite=overwrite,
            **settings,
            **{name: value for name, value in options.items() if name not in ("model", "method")},
        )
    if not first:
        return
    if as_json:
        print_json(dict(made.record))
        return
    table = new_table("", "", header=False)
    for name, value in made.rows():
        table.add_row(name, value)
    print_table(table)
    out().print(f"{output}: load it with --model {output}", soft_wrap=True)
