from .cache_vectors import from_cache as from_cache
from .generation_watch import Generation as Generation, GenerationWatch as GenerationWatch, watching as watching
from .wrapping import WrappedEncoder as WrappedEncoder, wrap as wrap
