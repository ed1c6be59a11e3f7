"""How vectors are stored, and told apart by the model and recipe that made them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
