"""Models: loading one, asking about one, encoding with it, explaining and saving it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
