from .extraction import Extraction as Extraction, Heading as Heading
from .folder import DocumentFile as DocumentFile, SetAside as SetAside, find_documents as find_documents
from .kinds import DOCUMENT_KINDS as DOCUMENT_KINDS, kind_of as kind_of, why_not_read as why_not_read
from .passages import extract as extract, read_passages as read_passages
from .splitter import Passage as Passage, Splitter as Splitter
