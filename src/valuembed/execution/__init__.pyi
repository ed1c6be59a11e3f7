from . import cpu_memory as cpu_memory
from .arrivals import Arrivals as Arrivals
from .capabilities import LaneName as LaneName, packed_up_to as packed_up_to, why_whole as why_whole
from .compilation import Compiling as Compiling, Wish as Wish
from .executor import read_within_memory as read_within_memory
from .prefix_cache import SharedPrefixes as SharedPrefixes
from .scheduler import (
    TOKENS_PER_STEP as TOKENS_PER_STEP,
    pad_right as pad_right,
    plan_steps as plan_steps,
    reset_dynamic_rope as reset_dynamic_rope,
    rope_groups as rope_groups,
    usual_step as usual_step,
)
from .stream import (
    SHARED_FROM as SHARED_FROM,
    Batch as Batch,
    batches as batches,
    cached_tokens as cached_tokens,
    shared_prefixes as shared_prefixes,
)
