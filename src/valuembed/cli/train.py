"""The command ``train``: fine-tune a model's vectors on pairs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from valuembed.cli.framework import command, quiet, slow_imports
from valuembed.cli.options import BUNDLED, INPUT, MODEL, OUTPUT, ModelArgument
from valuembed.cli.output import keeps, new_table, note, out, print_json, print_table

TRAIN = "Train"
TRAINING = "Training"


@command(
    panel=TRAIN,
    examples=(
        "valuembed train --pairs examples/pairs.jsonl -o trained --steps 6 --batch-size 8",
        'valuembed similarity "Can I pay by card?" "Do you take credit cards?" --model trained',
    ),
)
def train(
    options: dict[str, Any],
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
    epochs: Annotated[
        float, typer.Option(metavar="N", help="How often the training goes over all pairs.", rich_help_panel=TRAINING)
    ] = 1.0,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="How many steps the training takes, in place of --epochs.",
            rich_help_panel=TRAINING,
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int,
        typer.Option(min=2, metavar="N", help="How many pairs make a step, on each process.", rich_help_panel=TRAINING),
    ] = 64,
    mini_batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="How many pairs are computed at once, by cached gradients, which lets large batches fit into little "
            "memory.",
            rich_help_panel=TRAINING,
            show_default=False,
        ),
    ] = None,
    learning_rate: Annotated[
        float,
        typer.Option(metavar="RATE", help="The highest learning rate, after warming up.", rich_help_panel=TRAINING),
    ] = 5e-4,
    temperature: Annotated[
        float,
        typer.Option(metavar="T", help="The number that cosines are divided by in the loss.", rich_help_panel=TRAINING),
    ] = 0.05,
    scope: Annotated[
        str,
        typer.Option(
            help="Which parts get adapters, of those that the vectors depend on: 'attention', or 'all', which takes "
            "feed-forward parts too.",
            rich_help_panel=TRAINING,
        ),
    ] = "attention",
    rank: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="The rank of the adapters; a higher one learns more and takes more memory.",
            rich_help_panel=TRAINING,
        ),
    ] = 16,
    dropout: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="The share of the adapters' inputs that is dropped at random in training.",
            rich_help_panel=TRAINING,
        ),
    ] = 0.0,
    matryoshka: Annotated[
        list[int] | None,
        typer.Option(
            metavar="WIDTH ...",
            help="The widths that vectors may be cut to after the training.",
            rich_help_panel=TRAINING,
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
    seed: Annotated[
        int,
        typer.Option(
            metavar="N", help="The seed of the adapters, of the order and of dropout.", rich_help_panel=TRAINING
        ),
    ] = 0,
    save_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="How many steps lie between two checkpoints. By default it is a tenth of all steps.",
            rich_help_panel=TRAINING,
            show_default=False,
        ),
    ] = None,
    eval_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="How many steps lie between two evaluations. By default it is a fifth of all steps.",
            rich_help_panel=TRAINING,
            show_default=False,
        ),
    ] = None,
    checkpointing: Annotated[
        bool,
        typer.Option(
            "--checkpointing",
            help="Compute layers again in the backward pass, which takes less memory and more time.",
            rich_help_panel=TRAINING,
        ),
    ] = False,
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
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the record of the training as JSON.", rich_help_panel=OUTPUT)
    ] = False,
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
    settings: dict[str, Any] = {
        "scope": scope,
        "rank": rank,
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch_size,
        "mini_batch": mini_batch,
        "learning_rate": learning_rate,
        "temperature": temperature,
        "dropout": dropout,
        "matryoshka": tuple(matryoshka or ()),
        "seed": seed,
        "save_every": save_every,
        "eval_every": eval_every,
        "checkpointing": checkpointing,
    }
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
