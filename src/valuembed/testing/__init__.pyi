from .models import (
    ARCHITECTURES as ARCHITECTURES,
    HYBRIDS as HYBRIDS,
    TOKENIZERS as TOKENIZERS,
    tiny_causal_lm as tiny_causal_lm,
    tiny_checkpoint as tiny_checkpoint,
    tiny_config as tiny_config,
    tiny_decoder as tiny_decoder,
    tiny_tokenizer as tiny_tokenizer,
)
