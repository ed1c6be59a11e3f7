"""The model card of a saved model: what it is, and code that works for a stranger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from valuembed._utils.version import __version__
from valuembed.backbone import compute_dtype_of
from valuembed.models.calibration import find_calibration
from valuembed.recipes import LAST_LAYER, Recipe

if TYPE_CHECKING:
    from valuembed.models.encoder import ValueEncoder

_CARD = """---
tags:
- sentence-transformers
- valuembed
{tag}library_name: sentence-transformers
pipeline_tag: sentence-similarity
{base}---

# Sentence embeddings from {name} by {method}

{mark}

A decoder language model turned into a sentence-embedding model {training}, by reading its {signal}.
It maps a text to {width} numbers. Made with valuembed {version}.

| | |
|---|---|
| backbone | {name}{revision} |
| layers held here | {held} of {total} |
{read}
| text cleaning | {cleaning} |
| calibrated | {calibrated} |
| weights | {dtype} |
| longest sequence | {max_tokens} tokens, template included |

## Use

With the Python package valuembed installed:

```python
{usage}```

Or as a plain `SentenceTransformer`. The flag lets sentence-transformers import valuembed's
module; this folder holds no code.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{placeholder}", trust_remote_code=True)
embeddings = model.encode(["The weather is lovely today.", "It is sunny outside."])
```
{prompts}
This folder holds no language model head{cut}; it embeds, and cannot generate.

## Method

Zhang et al., *LLM-based Embeddings: Attention Values Encode Sentence Semantics Better Than Hidden States*,
arXiv 2602.01572. The licence of the backbone applies.
"""

_USAGE = """import valuembed

model = valuembed.load({arguments})
embeddings = model.encode(["The weather is lovely today.", "It is sunny outside.", "He drove to the stadium."])
print(model.similarity(embeddings, embeddings))
"""

PLACEHOLDER = "path-or-hub-id-of-this-model"
MARK = "<!-- Written by valuembed; take this line away to keep your own changes when the model is saved again. -->"


def usage(name: str, *, pull_request: bool = False) -> str:
    """Python code that loads a model by its name and embeds three texts."""
    number = ', revision="refs/pr/NUMBER"' if pull_request else ""
    return _USAGE.format(arguments=f'"{name}"{number}')


def model_card(encoder: ValueEncoder) -> str:
    """The text of a saved model's README.md."""
    reader = encoder.reader
    recipe, origin = reader.recipe, reader.origin
    words = recipe.describe()
    calibration = find_calibration(encoder)
    held = reader.model.config.num_hidden_layers
    on_hub = origin.fetchable and "/" in origin.name
    prompts = {name: prompt for name, prompt in encoder.prompts.items() if prompt}
    listed = "".join(f"\n- `{name}`: {prompt!r}" for name, prompt in prompts.items())
    trained = "generated_from_trainer" in (encoder.model_card_data.tags or ())
    adapted = bool(getattr(reader.model, "peft_config", None))
    placeholder = encoder.model_card_data.model_id or PLACEHOLDER
    return _CARD.format(
        mark=MARK,
        training="and then fine-tuned" if trained else "with an adapter" if adapted else "without training",
        tag="" if trained or adapted else "- training-free\n",
        usage=usage(placeholder),
        base=f"base_model: {origin.name.partition(':')[0]}\n" if on_hub else "",
        name=origin.name,
        revision=f" at {origin.revision}" if origin.revision else "",
        method=recipe.method,
        signal=words.signal,
        read="\n".join(
            _rows(part, f"part {at + 1}: " if recipe.joined else "") for at, part in enumerate(recipe.parts)
        ),
        cleaning=recipe.cleaning,
        calibrated=calibration.record if calibration else "no",
        width=(calibration or reader).get_embedding_dimension(),
        version=__version__,
        held=held,
        total=origin.num_layers,
        dtype=compute_dtype_of(reader.model),
        max_tokens=reader.max_tokens,
        placeholder=placeholder,
        prompts=f"\nInstructions saved with it (`prompt_name=`):\n{listed}\n" if prompts else "",
        cut=f" and no layers above {held - 1}" if held < origin.num_layers else "",
    )


def _rows(part: Recipe, head: str) -> str:
    """What is read, and in which templates, as rows of the card's table."""
    words = part.describe()
    rows = {
        "layers read": LAST_LAYER if part.reads_final_norm else words.layers,
        "signal, token weights": f"{words.signal}, {words.weights}"
        + (f", aligned through {words.alignment}" if words.alignment else ""),
        "span of a mean": part.span if part.weights == "mean" else "-",
        "template": _templates(part.template),
        "query template": _templates(part.query_template),
        "document template": _templates(part.document_template),
        **({"centred by": "the mean of general sentences"} if part.centring != "none" else {}),
        **({"weight": f"{part.weight:g}"} if head else {}),
    }
    return "\n".join(f"| {head}{name} | {value} |" for name, value in rows.items())


def _templates(templates: tuple[str, ...] | None) -> str:
    if templates is None:
        return "the same"
    return " and ".join(f"`{template}`" for template in templates).replace("|", "\\|").replace("\n", "\\n")
