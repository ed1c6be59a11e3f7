"""Documents of a folder, each read by its kind and cut into passages that keep their place."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
