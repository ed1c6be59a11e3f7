from .embed_options import EmbedOptions as EmbedOptions
from .job import (
    CorpusSummary as CorpusSummary,
    Progress as Progress,
    check_corpus as check_corpus,
    embed_corpus as embed_corpus,
)
from .manifest import check_folder as check_folder, read_manifest as read_manifest
from .ray_job import embed_corpus_on_ray as embed_corpus_on_ray
from .single_file import (
    EmbedSummary as EmbedSummary,
    check_files as check_files,
    embed_file as embed_file,
    rejected_path as rejected_path,
)
