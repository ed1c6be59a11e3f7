from . import cpu_memory as cpu_memory
from .capabilities import LayoutName as LayoutName
from .compilation import CompileChoice as CompileChoice, check_compile as check_compile
from .cpu_memory import tune_memory as tune_memory
from .executor import SHARED_FROM as SHARED_FROM, Executor as Executor, PrefixCache as PrefixCache
from .int8_products import Int8Linear as Int8Linear, use_int8_products as use_int8_products
from .parts import (
    ReadParts as ReadParts,
    read_parts as read_parts,
    read_token_vectors as read_token_vectors,
)
from .report import EncodeReport as EncodeReport, warn_of as warn_of
from .scheduler import (
    TOKENS_PER_STEP as TOKENS_PER_STEP,
    Batch as Batch,
    plan_steps as plan_steps,
    shared_tokens as shared_tokens,
    usual_step as usual_step,
)
from .stream import (
    BatchResult as BatchResult,
    check_vectors as check_vectors,
    collect as collect,
    read_texts as read_texts,
)
