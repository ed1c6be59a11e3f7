"""Tiny random decoders, tokenizers and checkpoints, made in memory: for our tests and for yours."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
