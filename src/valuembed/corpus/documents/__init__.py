"""A folder of documents embedded, and kept in step with by the same call."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
