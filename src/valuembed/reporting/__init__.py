"""Numbers in, files for people out: charts, tables, folders of results."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
