"""From sequences to vectors: the schedule of a call, and each step of it through the decoder."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
