from . import varlen as varlen
from .alignment import align_projected as align_projected, project_values as project_values
from .cached_values import CachedValues as CachedValues, mean_of_cached as mean_of_cached
from .hooks import ATTENTION_PREFIX as ATTENTION_PREFIX, install_attention_hooks as install_attention_hooks
from .layout import (
    BatchLayout as BatchLayout,
    PackedLayout as PackedLayout,
    PaddedLayout as PaddedLayout,
    PrefixKV as PrefixKV,
    lay_out as lay_out,
    pad_right as pad_right,
)
from .pooling import (
    centre as centre,
    expand_heads as expand_heads,
    join as join,
    span_mask as span_mask,
    unit as unit,
)
from .readout import (
    AttentionCall as AttentionCall,
    Readout as Readout,
    SignalKey as SignalKey,
    find_kernel as find_kernel,
    is_compiled as is_compiled,
    read_prefix as read_prefix,
)
from .varlen import longest_text as longest_text
