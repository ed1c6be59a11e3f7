"""How a decoder is loaded, whatever is read from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from valuembed._utils.options import option
from valuembed.backbone.checkpoints import HubKwargs, HubOptions

if TYPE_CHECKING:
    import torch


class LoadKwargs(HubKwargs, total=False):
    """Type the fields of :class:`LoadOptions` as keyword arguments."""

    dtype: str | torch.dtype | None
    device: str | torch.device | None
    max_tokens: int | None
    model_kwargs: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class LoadOptions(HubOptions):
    """Say how a decoder is loaded, and from where; each as in :func:`valuembed.load`.

    Attributes:
        dtype: of the weights; None is the checkpoint's own.
        device: where to compute; None picks a GPU where there is one.
        max_tokens: the longest sequence that is fed, template included; None is the model's own limit.
        model_kwargs: for transformers' ``from_pretrained``.
    """

    dtype: str | torch.dtype | None = option(
        None,
        "The precision of the weights: float32, bfloat16, float16, or 8 bits as int8 or fp8. By default it "
        "is the checkpoint's, or float32 on a CPU that would be slow with it.",
    )
    device: str | torch.device | None = option(
        None, "Where to compute, such as cpu, cuda or cuda:1. By default it is a GPU if there is one."
    )
    max_tokens: int | None = option(
        None,
        "The longest sequence in tokens, template included; longer texts are cut. By default it is as long "
        "as the model allows.",
        metavar="N",
        min=1,
    )
    model_kwargs: dict[str, Any] | None = None
