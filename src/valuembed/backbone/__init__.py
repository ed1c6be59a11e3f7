"""The decoder: what it is made of, what is read from it, and loading it cut to that. Nothing of texts."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
