from . import cpu_memory as cpu_memory
from .arrivals import AsyncGather as AsyncGather
from .capabilities import (
    LayoutName as LayoutName,
    packed_up_to as packed_up_to,
    prefix_unsupported_reason as prefix_unsupported_reason,
)
from .compilation import CompilePolicy as CompilePolicy, Compiling as Compiling
from .executor import read_within_memory as read_within_memory
from .prefix_cache import PrefixCache as PrefixCache
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
