from . import varlen as varlen
from .hooks import (
    DOOR as DOOR,
    KERNELS as KERNELS,
    AttentionCall as AttentionCall,
    Reading as Reading,
    Take as Take,
    find_kernel as find_kernel,
    is_compiled as is_compiled,
    open_door as open_door,
)
from .layout import Beginning as Beginning, Lane as Lane, PackedLane as PackedLane, PaddedLane as PaddedLane
from .pooling import expand_heads as expand_heads, span_mask as span_mask
from .varlen import longest_text as longest_text
