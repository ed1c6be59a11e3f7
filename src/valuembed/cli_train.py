"""The command ``train``: fine-tune a model's vectors on pairs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from valuembed.commands import BUNDLED, command, keeps, new_table, note, out, print_json, quiet

TRAIN = "Train"


@command(panel=TRAIN)
def train(
    options: dict[str, Any],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, local folder, or 'bundled'.")] = BUNDLED,
    pairs: Annotated[
        Path,
        typer.Option(
            help="Texts that belong together: .jsonl, .csv or .parquet, with columns such as anchor, positive and, for "
            "hard negatives, negative.",
            show_default=False,
        ),
    ] = ...,  # type: ignore[assignment]
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Folder for the trained model.", show_default=False),
    ] = ...,  # type: ignore[assignment]
    method: Annotated[
        str | None,
        typer.Option(
            help="What is trained: a method, or a recipe file (.json). The baseline is hidden_mean. Default: va, or "
            "what a saved model was saved with.",
            show_default=False,
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN ...", help="Of the file: anchor, positive, then hard negatives.", show_default=False
        ),
    ] = None,
    evaluation: Annotated[
        str | None,
        typer.Option("--eval", help="sts:FILE, scored before, during and after.", show_default=False),
    ] = None,
    scope: Annotated[
        str,
        typer.Option(
            help="Where adapters go, of what the vectors depend on: attention, or all (feed-forward parts too)."
        ),
    ] = "attention",
    rank: Annotated[int, typer.Option(min=1, help="Of the adapters.")] = 16,
    epochs: Annotated[float, typer.Option(help="Passes over the pairs.")] = 1.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps, in place of --epochs.", show_default=False)] = None,
    batch_size: Annotated[int, typer.Option(min=2, help="Pairs in a step, on each process.")] = 64,
    mini_batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Pairs computed at once, by cached gradients: large batches in little memory.",
            show_default=False,
        ),
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="The highest.")] = 5e-4,
    temperature: Annotated[float, typer.Option(help="By which cosines are divided in the loss.")] = 0.05,
    dropout: Annotated[float, typer.Option(min=0, max=1, help="Of the adapters' inputs.")] = 0.0,
    matryoshka: Annotated[
        list[int] | None,
        typer.Option(metavar="WIDTH ...", help="Widths that vectors may be cut to afterwards.", show_default=False),
    ] = None,
    query_prompt: Annotated[str | None, typer.Option(help="Instruction for anchors.", show_default=False)] = None,
    document_prompt: Annotated[
        str | None, typer.Option(help="Instruction for all other texts.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of adapters, order and dropout.")] = 0,
    save_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between checkpoints. Default: a tenth of them.", show_default=False)
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between evaluations. Default: a fifth.", show_default=False)
    ] = None,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Compute layers again in the backward pass: less memory, slower.")
    ] = False,
    merged: Annotated[
        bool, typer.Option("--merged", help="Save a whole model with the adapters in its weights.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model in DIR if there is one.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Fine-tune a model on pairs of texts that belong together: adapters only, the model's weights stay.

    Stopped at any moment, it goes on from its last checkpoint when it is started again. Several processes:
    accelerate launch --num_processes N -m valuembed train ...
    """
    from valuembed.finetune import STATE
    from valuembed.finetune import train as run
    from valuembed.training_settings import is_first_process

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
            scope=scope,
            rank=rank,
            epochs=epochs,
            steps=steps,
            batch_size=batch_size,
            mini_batch=mini_batch,
            learning_rate=learning_rate,
            temperature=temperature,
            dropout=dropout,
            matryoshka=tuple(matryoshka or ()),
            seed=seed,
            save_every=save_every,
            eval_every=eval_every,
            checkpointing=checkpointing,
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
    out().print(table)
    out().print(f"{output}: load it with --model {output}", soft_wrap=True)
