from .chat import expand_chat as expand_chat, names_chat as names_chat
from .chunking import Chunk as Chunk, Cutter as Cutter
from .loading import (
    CHAT_TEMPLATE as CHAT_TEMPLATE,
    NO_LIMIT as NO_LIMIT,
    TOKENIZER_FILES as TOKENIZER_FILES,
    load_tokenizer as load_tokenizer,
    token_limit as token_limit,
)
from .offsets import token_starts as token_starts
from .sequences import TokenSequence as TokenSequence
from .tokenizer import TextTokenizer as TextTokenizer
from .tokenizer_copy import copy_tokenizer as copy_tokenizer
from .vocabulary import (
    check_rows as check_rows,
    check_template as check_template,
    lacking as lacking,
    lacking_in_file as lacking_in_file,
)
from .windows import PartWindow as PartWindow, tokenize_parts as tokenize_parts, windows_of as windows_of
