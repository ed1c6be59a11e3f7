"""From a text and a template to token ids, with the text's own tokens marked."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
