from . import adapters as adapters
from .adapter_embeddings import rows_with as rows_with
from .architecture import AttentionBlock as AttentionBlock, DecoderSpec as DecoderSpec, embedding_rows as embedding_rows
from .digests import content_digest as content_digest, fingerprint as fingerprint, tensors_digest as tensors_digest
from .dtypes import (
    COMPUTED as COMPUTED,
    QUANTIZED as QUANTIZED,
    check_held as check_held,
    dtype_name as dtype_name,
    usable_name as usable_name,
)
from .facts_cache import decoder_facts as decoder_facts, kept_facts as kept_facts
from .gguf_weights import read_gguf_head as read_gguf_head
from .kernels import KERNELS as KERNELS
from .load_options import LoadKwargs as LoadKwargs, LoadOptions as LoadOptions
from .loading import (
    checkpoint_dtype as checkpoint_dtype,
    load_decoder as load_decoder,
    parse_dtype as parse_dtype,
    usable_dtype as usable_dtype,
)
from .model_kwargs import check_model_kwargs as check_model_kwargs
from .plan import Plan as Plan, resolve_plan as resolve_plan, settle_plan as settle_plan
from .prequantized import holds_quantized as holds_quantized
from .quantizing import (
    compute_dtype_asked as compute_dtype_asked,
    compute_dtype_of as compute_dtype_of,
    computes_in_int8 as computes_in_int8,
    has_int8_products as has_int8_products,
    split_dtype as split_dtype,
)
from .resolution import prepare as prepare
from .rope import reset_dynamic_rope as reset_dynamic_rope, rope_groups as rope_groups
from .shared_decoder import (
    SharedDecoder as SharedDecoder,
    bare_model as bare_model,
    find_decoder as find_decoder,
)
from .tracing import caches_values as caches_values, trace_architecture as trace_architecture
