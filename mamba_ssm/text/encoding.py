"""Which encoding a file is in, found without holding the file in memory."""

import codecs
import re
from pathlib import Path

from mamba_ssm.errors import BookError

SAMPLE_BYTES = 1 << 20
FORMATS = ".txt, .md, .rst, .html, .tex, .ipynb, .docx, .epub or .pdf"

# UTF-32 comes first: its little-endian mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DECLARED = re.compile(
    rb"""<(?:\?xml[^>]{0,200}?encoding|meta[^>]{0,200}?charset)\s*=\s*["']?\s*([\w.:-]{1,40})""", re.I
)
# Codecs that can be right where an ASCII declaration was legible: no UTF-16, and none of Python's transforms.
_CHARSETS = re.compile("utf-8|iso|cp|koi8|mac|shift|euc|gb|big5|hz|tis|johab")
# Words with a byte above ASCII; multi-byte encodings use ASCII's bytes too.
_WORDS = re.compile(rb"[\x21-\x7e]{0,30}[\x80-\xff][\x21-\xff]*")
# What no text holds: control characters other than white space and the escape of coloured terminal logs.
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f]")


def normalise_newlines(text: str) -> str:
    """Every line end as one line feed."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def is_junk(text: str) -> bool:
    """Whether decoded bytes are no text: any NUL, or over 2% control characters, or over 20% undecodable."""
    return "\0" in text or len(_CONTROLS.findall(text)) * 50 > len(text) or text.count("\ufffd") * 5 > len(text)


def file_encoding(path: Path) -> str:
    """The encoding of a text file: its byte order mark, else UTF-8 if all of it is, else the best guess.

    Raises BookError when no encoding turns the bytes into text.
    """
    sample = _head_or_first_not_utf8(path)
    encoding = _guess(sample) if isinstance(sample, bytes) else sample
    with path.open("rb") as file:
        head = file.read(SAMPLE_BYTES)
    for part in (head, sample) if isinstance(sample, bytes) else (head,):
        check_text(part.decode(encoding, errors="replace"))
    return encoding


def check_text(text: str) -> None:
    """Raise BookError when decoded bytes are binary junk."""
    if is_junk(text):
        raise BookError(f"not text but binary data; give a {FORMATS} file")


def decode_markup(data: bytes) -> str:
    """HTML or XML as text with normal newlines: mark, else UTF-8, else what the document declares, else a guess."""
    encoding = _mark(data)
    if encoding is None and b"\0" not in data:  # text with NULs is in 16-bit units, whatever it declares
        try:
            return normalise_newlines(data.decode("utf-8"))
        except UnicodeDecodeError:
            declared = _DECLARED.search(data[:2048])
            encoding = _known(declared.group(1).decode("ascii")) if declared else None
    return normalise_newlines(data.decode(encoding or _guess(data[:SAMPLE_BYTES]), errors="replace"))


def _mark(data: bytes) -> str | None:
    return next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)


def _known(name: str) -> str | None:
    """The codec of a declared charset; pages that say Latin-1 mean Windows' superset of it, as browsers have it."""
    try:
        codec = codecs.lookup(name).name
    except LookupError:
        return None
    if codec in ("iso8859-1", "ascii"):
        return "cp1252"
    return codec if _CHARSETS.match(codec) else None


def _head_or_first_not_utf8(path: Path) -> str | bytes:
    """The encoding where that is certain; else a sample from where the file first stops being UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        chunk = file.read(SAMPLE_BYTES)
        if (marked := _mark(chunk)) is not None:
            return marked
        if b"\0" in chunk:
            return chunk
        while True:
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError:
                file.seek(max(0, file.tell() - len(chunk) - 64))
                return file.read(SAMPLE_BYTES)
            if not chunk:
                return "utf-8"
            chunk = file.read(SAMPLE_BYTES)


def _guess(sample: bytes) -> str:
    """The most likely encoding of bytes that are not wholly UTF-8 and carry no mark."""
    if b"\0" in sample:  # text has NULs only as halves of 16-bit units, nearly all on one side
        even, odd = sample[0::2].count(0), sample[1::2].count(0)
        if max(even, odd) > 20 * min(even, odd):
            return "utf-16-be" if even > odd else "utf-16-le"
    text = sample.decode("utf-8", errors="replace")
    wrong = text.count("\ufffd")
    if wrong * 10 <= sum(char > "\x7f" for char in text) - wrong:  # UTF-8 with a few damaged bytes
        return "utf-8"
    return _guess_8_bit(b" ".join(_WORDS.findall(sample)[:5000]))


def _guess_8_bit(words: bytes) -> str:
    """The most likely encoding of words that hold bytes above ASCII. A long book in English may hold only a few."""
    from charset_normalizer import from_bytes

    high = sum(byte > 0x7F for byte in words)
    if high * 2 > sum(byte > 0x40 for byte in words):  # not a Latin script
        best = from_bytes(words).best()
        return best.encoding if best is not None else "cp1252"
    # Among Latin scripts the library's first answer is a toss-up: Western unless Central European is clearly better.
    matches = {match.encoding: match for match in from_bytes(words, cp_isolation=["cp1252", "cp1250"])}
    best, western = matches.get("cp1250"), matches.get("cp1252")
    if best is None or "cp1252" in best.could_be_from_charset:
        return "cp1252"
    if western is not None and (western.chaos, -western.coherence) <= (best.chaos, 0.05 - best.coherence):
        return "cp1252"
    return "cp1250" if re.search(rb"[\x80-\x9f]", words) else "iso8859-2"
