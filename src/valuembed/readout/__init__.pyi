from . import varlen as varlen
from .hooks import (
    ATTENTION_PREFIX as ATTENTION_PREFIX,
    AttentionCall as AttentionCall,
    Readout as Readout,
    SignalKey as SignalKey,
    find_kernel as find_kernel,
    install_attention_hooks as install_attention_hooks,
    is_compiled as is_compiled,
)
from .layout import (
    BatchLayout as BatchLayout,
    PackedLayout as PackedLayout,
    PaddedLayout as PaddedLayout,
    PrefixKV as PrefixKV,
)
from .pooling import expand_heads as expand_heads, span_mask as span_mask
from .varlen import longest_text as longest_text
