from .column_types import merged as merged, to_array as to_array
from .compression import COMPRESSIONS as COMPRESSIONS, extension as extension, open_stream as open_stream
from .labelled import (
    LabelledFile as LabelledFile,
    StsFile as StsFile,
    TaskData as TaskData,
    read_labelled as read_labelled,
    read_pairs as read_pairs,
    read_reranking as read_reranking,
    read_retrieval as read_retrieval,
    read_scored as read_scored,
    read_sts as read_sts,
    splits_of as splits_of,
)
from .labelled_rows import digest_of as digest_of
from .pairs import (
    TrainingPairs as TrainingPairs,
    check_batch as check_batch,
    overlap as overlap,
    read_training_pairs as read_training_pairs,
)
from .records import BLANK as BLANK, FILE_KINDS as FILE_KINDS, InBatch as InBatch, reading as reading
from .sources import (
    Source as Source,
    State as State,
    check_unchanged as check_unchanged,
    find_sources as find_sources,
    fingerprint_file as fingerprint_file,
)
from .tables import column_index as column_index, no_column as no_column
from .text_rows import (
    DEFAULT_TEXT_COLUMN as DEFAULT_TEXT_COLUMN,
    Rejected as Rejected,
    Row as Row,
    RowReader as RowReader,
    check_input as check_input,
    count_rows as count_rows,
    look_for_text as look_for_text,
    nothing_usable as nothing_usable,
    read_rows as read_rows,
)
from .validation import (
    MAX_TEXT_BYTES as MAX_TEXT_BYTES,
    as_text as as_text,
    as_texts as as_texts,
    check_prompt as check_prompt,
    check_text as check_text,
    check_texts as check_texts,
    iter_texts as iter_texts,
)
