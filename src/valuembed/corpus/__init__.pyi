from .batches import (
    NOT_STORED as NOT_STORED,
    encode_isolating_failures as encode_isolating_failures,
    warn_of_truncation as warn_of_truncation,
)
from .chunking import token_counter as token_counter
from .embed_options import EmbedOptions as EmbedOptions
from .job import (
    CorpusSummary as CorpusSummary,
    Progress as Progress,
    check_corpus as check_corpus,
    embed_corpus as embed_corpus,
)
from .manifest import (
    DOCUMENTS_KIND as DOCUMENTS_KIND,
    MANIFEST as MANIFEST,
    PACKAGES as PACKAGES,
    SAME_MODEL_COSINE as SAME_MODEL_COSINE,
    WORK as WORK,
    check_folder as check_folder,
    holds_passages as holds_passages,
    read_manifest as read_manifest,
)
from .ray_job import embed_corpus_on_ray as embed_corpus_on_ray
from .shards import REJECTED as REJECTED
from .single_file import (
    EmbedSummary as EmbedSummary,
    check_files as check_files,
    embed_file as embed_file,
    rejected_path as rejected_path,
)
