from .kept_columns import (
    INDEX_COLUMNS as INDEX_COLUMNS,
    KEY as KEY,
    LOOKED_AT as LOOKED_AT,
    NUMBERED as NUMBERED,
    PART as PART,
    SOURCE as SOURCE,
    KeptColumns as KeptColumns,
    check_further as check_further,
    find_columns as find_columns,
)
from .late_interaction import maxsim as maxsim, maxsim_pairwise as maxsim_pairwise
from .passages import (
    BETWEEN_HEADINGS as BETWEEN_HEADINGS,
    HEADINGS as HEADINGS,
    LINE as LINE,
    PAGE as PAGE,
    TITLE as TITLE,
    DocumentState as DocumentState,
    EmbeddedDocument as EmbeddedDocument,
    PassageLike as PassageLike,
    PassageRecord as PassageRecord,
    PassageStore as PassageStore,
    passage_rows as passage_rows,
    passage_schema as passage_schema,
    setting_differences as setting_differences,
)
from .provenance import (
    CHUNK as CHUNK,
    EMBEDDING as EMBEDDING,
    END as END,
    FILE as FILE,
    ID as ID,
    METADATA_KEY as METADATA_KEY,
    ROW as ROW,
    START as START,
    TEXT as TEXT,
    Encoder as Encoder,
    VectorSpec as VectorSpec,
)
from .quantization import PRECISIONS as PRECISIONS, check_precision as check_precision, pack as pack, shorten as shorten
from .reader import (
    PLACES as PLACES,
    EmbeddingFile as EmbeddingFile,
    EmbeddingFiles as EmbeddingFiles,
    StoredRows as StoredRows,
    holds_one_value as holds_one_value,
    is_remote as is_remote,
)
from .recorded import (
    recorded_choices as recorded_choices,
    recorded_job as recorded_job,
    recorded_options as recorded_options,
    telling_what_made as telling_what_made,
)
from .writer import VectorWriter as VectorWriter
