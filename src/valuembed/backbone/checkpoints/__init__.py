"""A checkpoint on disk or on the hub: where it is and what it says of itself, told without torch."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
