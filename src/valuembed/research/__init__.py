"""The paper's experiments: its tables, its analyses, and what each method costs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
