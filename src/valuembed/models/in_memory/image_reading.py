"""Read images with an image-text model in memory, by the recipes that read texts. Experimental."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from valuembed.backbone import Plan, SharedDecoder
from valuembed.errors import InputError, RecipeError
from valuembed.readout import PaddedLayout, Readout

SLOT = "{image}"
"""Where an image goes in a template of images."""

IMAGE_ALONE, IMAGE_IN_A_WORD = SLOT, f'{SLOT}\nThis image means in one word:"'
"""Templates for recipes that average tokens, and for those that read the last one. The wording is ours."""


@dataclass(frozen=True)
class ImageReader:
    """Reads images with a copy of an image-text model.

    Attributes:
        shared: the copy, of what is around the decoder too.
        plan: what is read; of a mean, the image's own tokens are averaged.
        processor: the model's; None where images come processed.
    """

    shared: SharedDecoder
    plan: Plan
    processor: Any = None

    def __post_init__(self) -> None:
        if self.plan.joined:
            raise RecipeError(
                f"method {self.plan.recipe.method!r} joins parts that read texts in templates of their own; for images "
                "use one such as va or aligned_wva"
            )

    @torch.inference_mode()
    def read(self, images: Sequence[Any], template: str | None = None) -> Tensor:
        """Read images, one after the other.

        Args:
            images: n pictures as the processor takes them, or what it made of each, as mappings.
            template: one ``{image}`` and text around it; None is :data:`IMAGE_ALONE` or :data:`IMAGE_IN_A_WORD`.

        Returns:
            ``[n, width]`` float32.

        Raises:
            InputError: no template, no processor, or what it makes holds no token of an image.
        """
        text = self._text(template)
        return torch.cat([self._read_one(image, text, at) for at, image in enumerate(images)])

    def _text(self, template: str | None) -> str:
        if template is None:
            template = IMAGE_ALONE if self.plan.recipe.weights == "mean" else IMAGE_IN_A_WORD
        if template.count(SLOT) != 1:
            raise InputError(f"template={template!r} has to hold {SLOT} once, where the image goes")
        # Of these two tokens a processor takes the first as the sign of an image, where it has both.
        slot = getattr(self.processor, "boi_token", None) or getattr(self.processor, "image_token", None)
        return template.replace(SLOT, slot or "")

    def _read_one(self, image: Any, text: str, at: int) -> Tensor:
        model = self.shared.model
        if isinstance(image, Mapping):
            inputs = dict(image)
        elif self.processor is None:
            raise InputError("images need the model's processor: give it to wrap() in place of the tokenizer")
        else:
            try:
                inputs = dict(self.processor(images=[image], text=[text], return_tensors="pt"))
            except (TypeError, ValueError, OSError) as error:
                raise InputError(f"image {at} cannot be read by {type(self.processor).__name__}: {error}") from error
        inputs = {
            name: value.to(model.device, model.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
            if isinstance(value, Tensor)
        }
        ids = inputs.get("input_ids")
        number = _image_token(self.shared.outer.config)
        if ids is None or ids.shape[0] != 1 or not bool((ids == number).any()):
            raise InputError(f"image {at}: one row of token ids that hold the image's (id {number}) is needed")
        last = torch.tensor([ids.shape[1] - 1], device=model.device)
        layout = PaddedLayout(last, ids == number)
        (vectors,) = Readout(model, [self.plan], layout, self.shared.outer).run(**inputs)
        return vectors.cpu()


def _image_token(config: Any) -> int | None:
    """The id that stands in a model's input for each piece of an image."""
    for name in ("image_token_id", "image_token_index"):
        if isinstance(number := getattr(config, name, None), int):
            return number
    return None
