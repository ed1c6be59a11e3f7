"""Make the bundled model: a tokenizer and a small Qwen3-shaped decoder, from an open corpus.

    python scripts/train_bundled.py train --corpus FILE --out DIR [--trunk N] [--branch N] [--seed N] [--device cuda]
    python scripts/train_bundled.py loss --corpus FILE MODEL [MODEL ...]

`train` makes two variants with the same budget. Both share a trunk of --trunk tokens of the corpus, at a learning rate
that stays; then each goes on for --branch tokens while the rate falls to 0: `plain` with the corpus alone, `taught`
with one row in four of lessons, the templates of PromptEOL and FutureEOL with words that answer them. One document in
a hundred is held out. Started again with the same arguments, it goes on where it was; --trunk may be made smaller or
larger until the trunk is left. Given seed, device and thread count, the result is the same. DIR gets `plain/model` and
`taught/model` (bfloat16 safetensors, tokenizer) and, beside each, training.json.

`loss` tells the loss of any checkpoint folders on the held-out documents, a token and a byte.
"""

from __future__ import annotations

import os

# Idle OpenMP threads must sleep: beside another busy process, spinning ones slow torch down many times over.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import math
import platform
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from bundling.lessons import LessonRows, make_lessons, pack_lessons, weigh_words
from bundling.rows import encode, pack
from bundling.text import BOS_ID, EOS_ID, PAD_ID, documents, is_held_out, train_tokenizer
from bundling.training import Settings, Trainer, validation_loss
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

VARIANTS = ("plain", "taught")
LESSON_SHARE = 4
"""One row in so many of the taught variant's branch is lessons."""
LESSONS_FROM = 0.3
"""Share of the fit sentences that become lessons."""


def config(args: argparse.Namespace) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=args.vocabulary,
        hidden_size=args.width,
        intermediate_size=2 * args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=args.width // 4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        use_cache=False,
    )


def split(corpus: Path, *, held_out: bool) -> Iterator[str]:
    return (text for text in documents(corpus) if is_held_out(text) == held_out)


def prepare(args: argparse.Namespace) -> tuple[PreTrainedTokenizerFast, np.ndarray, np.ndarray, LessonRows]:
    """Tokenizer, rows to train on, held-out rows, lessons; kept in the output folder from the first time on."""
    folder = args.out / "data"
    done = folder / "done.json"
    made_from = {"corpus": args.corpus.stat().st_size, "vocabulary": args.vocabulary, "length": args.length}
    if done.is_file():
        if json.loads(done.read_text()) != made_from:
            raise SystemExit(f"{folder} was made with {done.read_text()}, asked for is {json.dumps(made_from)}")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    else:
        print("tokenizer, rows and lessons: some minutes, once")
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = train_tokenizer(split(args.corpus, held_out=False), args.vocabulary, longest=1024)
        tokenizer.save_pretrained(folder)
        for name, held_out in (("corpus", False), ("held_out", True)):
            rows = pack(encode(tokenizer, split(args.corpus, held_out=held_out)), args.length)
            np.save(folder / f"{name}.npy", rows)
        weights = weigh_words(split(args.corpus, held_out=False))
        lessons = make_lessons(split(args.corpus, held_out=False), weights, args.lessons_from, args.seed)
        np.savez(folder / "lessons.npz", **vars(pack_lessons(lessons, tokenizer, args.length, args.seed)))
        done.write_text(json.dumps(made_from))
    with np.load(folder / "lessons.npz") as lessons_file:
        lessons = LessonRows(**lessons_file)
    return tokenizer, np.load(folder / "corpus.npy"), np.load(folder / "held_out.npy"), lessons


def train(args: argparse.Namespace) -> None:
    tokenizer, corpus, held_out, lessons = prepare(args)
    print(f"{len(corpus):,} rows of {args.length} tokens, {len(held_out):,} held out, {len(lessons.ids):,} of lessons")
    torch.manual_seed(args.seed)
    attention = "eager" if args.device == "cpu" else "sdpa"
    settings = Settings(rows=args.rows, seed=args.seed)

    def trainer(folder: str, lessons_a_step: int) -> Trainer:
        torch.manual_seed(args.seed)
        torch._dynamo.reset()
        # On CPU, eager attention's backward pass is twice as fast as that of the fused kernel.
        model = Qwen3ForCausalLM._from_config(config(args), attn_implementation=attention).to(args.device)
        return Trainer(
            model,
            corpus,
            held_out,
            lessons,
            replace(settings, lessons=lessons_a_step),
            args.out / folder / "state.pt",
            compiled=args.compile,
        )

    started = [variant for variant in VARIANTS if (args.out / variant / "state.pt").is_file()]
    if not started:
        trunk = trainer("trunk", 0)
        trunk.resume()
        trunk.run(args.trunk, save_every=args.save_every, look_every=args.look_every)
    for variant in VARIANTS:
        run = trainer(variant, args.rows // LESSON_SHARE if variant == "taught" else 0)
        if not run.resume():
            run.resume(args.out / "trunk" / "state.pt")
        trunk_tokens = torch.load(args.out / "trunk" / "state.pt", weights_only=True)["progress"]["tokens"]
        end = trunk_tokens + args.branch
        run.run(end, cool_from=trunk_tokens, save_every=args.save_every, look_every=args.look_every)
        finish(args, variant, run, tokenizer, held_out, trunk_tokens)


def finish(
    args: argparse.Namespace,
    variant: str,
    run: Trainer,
    tokenizer: PreTrainedTokenizerFast,
    held_out: np.ndarray,
    trunk_tokens: int,
) -> None:
    """The variant as a checkpoint folder, and the record of its making."""
    nats, known = validation_loss(run.model, held_out, args.rows)
    folder = args.out / variant / "model"
    run.model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    record = {
        "variant": variant,
        "seed": args.seed,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "compiled": args.compile,
        "parameters": run.model.num_parameters(),
        "settings": asdict(run.settings),
        "trunk_tokens": trunk_tokens,
        "validation_loss": round(nats / known, 4),
        **asdict(run.progress),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }
    (args.out / variant / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"{variant}: validation loss {nats / known:.4f} after {run.progress.tokens:,} tokens; see {folder}")


def loss(args: argparse.Namespace) -> None:
    size = sum(len(text.encode()) for text in split(args.corpus, held_out=True))
    print("| model | nats a token | bits a byte |\n|:--|--:|--:|")
    for folder in args.models:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        rows = pack(encode(tokenizer, split(args.corpus, held_out=True)), args.length)
        nats, known = validation_loss(model.to(args.device), rows, args.rows)
        print(f"| {folder} | {nats / known:.4f} | {nats / math.log(2) / size:.4f} |")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--corpus", type=Path, required=True, help='JSON Lines with a field "text", or the same as .zst'
    )
    shared.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    shared.add_argument("--length", type=int, default=128, help="tokens of a row")
    shared.add_argument("--rows", type=int, default=96, help="rows in a step")
    of_train = verbs.add_parser("train", parents=[shared], help="make both variants")
    of_train.add_argument("--out", type=Path, required=True, help="folder for everything that is made")
    of_train.add_argument("--trunk", type=int, default=100_000_000, help="tokens that both variants share")
    of_train.add_argument("--branch", type=int, default=40_000_000, help="tokens of each variant's own")
    of_train.add_argument("--seed", type=int, default=0)
    of_train.add_argument("--layers", type=int, default=12)
    of_train.add_argument("--width", type=int, default=256)
    of_train.add_argument("--vocabulary", type=int, default=8192)
    of_train.add_argument("--lessons-from", type=float, default=LESSONS_FROM, help="share of the fit sentences")
    of_train.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    of_train.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    of_train.add_argument("--look-every", type=int, default=100, help="steps between entries of the loss curve")
    of_train.set_defaults(verb=train)
    of_loss = verbs.add_parser("loss", parents=[shared], help="loss of checkpoints on the held-out documents")
    of_loss.add_argument("models", nargs="+", metavar="MODEL", help="checkpoint folders")
    of_loss.set_defaults(verb=loss)
    args = parser.parse_args(arguments)
    args.verb(args)


if __name__ == "__main__":
    main()
