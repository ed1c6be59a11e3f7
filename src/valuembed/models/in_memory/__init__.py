"""A model that is in memory already: wrapped, its key-value caches read, its generation watched."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
