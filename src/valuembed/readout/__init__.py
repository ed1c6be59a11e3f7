"""Reading signals out of a running decoder: hooks, layout of a batch, pooling. The paper lives here."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
