"""A model behind the embeddings APIs of OpenAI and other servers, and a page to try it with."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
