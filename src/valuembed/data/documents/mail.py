"""Read mail: who wrote to whom about what, and the text; attachments are named."""

from __future__ import annotations

import email
import email.policy
from email.message import EmailMessage

from valuembed.data.documents.decoding import decoded
from valuembed.data.documents.extraction import Extraction, TextBuilder
from valuembed.data.documents.html import read_html
from valuembed.errors import DocumentError

_SHOWN = ("From", "To", "Cc", "Date")
_DEEPEST = 20
"""Mails within mails that are opened."""


def read_mail(data: bytes) -> Extraction:
    """The text of a mail: its subject as heading and title, who and when, then the text.

    Of a text that is there as plain text and as HTML, the plain one is read. Attached mails follow with headings of
    their own. Other attachments are named and not read.

    Args:
        data: of the file.

    Raises:
        DocumentError: it has neither headers of a mail nor text.
        MissingExtraError: its text is HTML alone, and ``selectolax`` is not installed.
    """
    mail = email.message_from_bytes(data, policy=email.policy.default)
    assert isinstance(mail, EmailMessage)
    if not any(mail[name] for name in ("From", "To", "Subject", "Date", "Received", "Message-ID", "MIME-Version")):
        raise DocumentError("no mail: none of the headers From, To, Subject and Date is in it")
    builder = TextBuilder(_header(mail, "Subject") or None)
    _add(mail, builder, 1)
    return builder.done()


def _add(mail: EmailMessage, builder: TextBuilder, level: int) -> None:
    builder.heading(level, _header(mail, "Subject"))
    shown = ((name, _header(mail, name)) for name in _SHOWN)
    builder.block("\n".join(f"{name}: {value}" for name, value in shown if value))
    names: list[str] = []
    _add_part(mail, builder, level, names)
    if names:
        builder.block("\n".join(f"Attachment: {name}" for name in names))


def _add_part(part: EmailMessage, builder: TextBuilder, level: int, names: list[str]) -> None:
    kind = part.get_content_type()
    if kind == "message/rfc822":
        mails = _parts(part)
        if level >= _DEEPEST or not mails:
            names.append(_name(part) or "a mail")
        for mail in mails if level < _DEEPEST else []:
            _add(mail, builder, level + 1)
    elif kind == "multipart/alternative":
        parts = _parts(part)
        plain = [each for each in parts if each.get_content_type() == "text/plain" and _text(each).strip()]
        for each in plain[:1] or parts[-1:]:
            _add_part(each, builder, level, names)
    elif part.is_multipart():
        for each in _parts(part):
            _add_part(each, builder, level, names)
    elif part.is_attachment() or part.get_content_maintype() != "text":
        if name := _name(part):
            names.append(name)
    elif kind == "text/html":
        for block in read_html(_text(part)).text.split("\n\n"):
            builder.block(block)
    else:
        builder.block(_text(part))


def _parts(part: EmailMessage) -> list[EmailMessage]:
    payload = part.get_payload()
    return [each for each in payload if isinstance(each, EmailMessage)] if isinstance(payload, list) else []


def _text(part: EmailMessage) -> str:
    """The text of a part, in whatever charset it is and whatever it claims."""
    data = part.get_payload(decode=True)
    if not isinstance(data, bytes):
        return ""
    try:
        return data.decode(str(part.get_content_charset() or "utf-8"))
    except (LookupError, ValueError):
        return decoded(data)


def _header(mail: EmailMessage, name: str) -> str:
    try:
        return " ".join(str(mail[name] or "").split())
    except (ValueError, LookupError, IndexError, AttributeError, TypeError):
        # The standard library's parser of headers gives up at some that are broken.
        raw = dict(mail.raw_items()).get(name, "")
        return " ".join(str(raw).split())


def _name(part: EmailMessage) -> str | None:
    try:
        return part.get_filename()
    except (ValueError, LookupError, AttributeError, TypeError):
        return None
