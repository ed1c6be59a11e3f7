"""How a vector is read, in words: recipes, templates, layers, cleaning. Pure Python, without torch."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
