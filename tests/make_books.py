"""Real books for the tests, written byte by byte: small PDFs and EPUBs, whole or broken in a chosen way."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

CONTAINER = """<?xml version="1.0"?>
<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>
<rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>"""

# Each code of two bytes is its own character, 256 of them in a range as the format demands.
TO_UNICODE = "1 begincodespacerange <0000> <FFFF> endcodespacerange\n" + "\n".join(
    "16 beginbfrange " + " ".join(f"<{i:02X}00> <{i:02X}FF> <{i:02X}00>" for i in range(j, j + 16)) + " endbfrange"
    for j in range(0, 256, 16)
)


def pdf_bytes(
    pages: Sequence[Sequence[str]], outline: Sequence[tuple[str, int]] = (), trailer: str = "", labels: str = ""
) -> bytes:
    """A PDF of pages of lines (Unicode's first plane), with outline entries of title and page index, and page labels.

    `labels` is what stands in the document's number tree of them.
    """
    first_page = 4
    first_mark = first_page + 2 * len(pages)
    marks = [first_mark + 1 + index for index in range(len(outline))]
    kids = " ".join(f"{first_page + 2 * index} 0 R" for index in range(len(pages)))
    to_unicode = first_mark + (1 + len(outline) if outline else 0)
    objects = [
        "<< /Type /Catalog /Pages 2 0 R"
        + (f" /Outlines {first_mark} 0 R" if outline else "")
        + (f" /PageLabels << /Nums [{labels}] >>" if labels else "")
        + " >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for index, lines in enumerate(pages):
        shown = " ".join(f"{_shown(line)} Tj T*" for line in lines)
        content = f"BT /F1 12 Tf 14 TL 72 720 Td {shown} ET" if lines else ""
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R "
            f"/F2 << /Type /Font /Subtype /Type0 /BaseFont /X /Encoding /Identity-H /ToUnicode {to_unicode} 0 R "
            "/DescendantFonts [<< /Type /Font /Subtype /CIDFontType2 /BaseFont /X "
            "/CIDSystemInfo << /Registry (Adobe) /Ordering (Identity) /Supplement 0 >> >>] >> >> >> "
            f"/Contents {first_page + 2 * index + 1} 0 R >>"
        )
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    if outline:
        objects.append(f"<< /Type /Outlines /First {marks[0]} 0 R /Last {marks[-1]} 0 R /Count {len(marks)} >>")
    for index, (name, page) in enumerate(outline):
        links = f" /Prev {marks[index - 1]} 0 R" if index else ""
        links += f" /Next {marks[index + 1]} 0 R" if index + 1 < len(marks) else ""
        target = f"[{first_page + 2 * page} 0 R /Fit]"
        objects.append(f"<< /Title ({_escape(name)}) /Parent {first_mark} 0 R /Dest {target}{links} >>")
    objects.append(f"<< /Length {len(TO_UNICODE)} >>\nstream\n{TO_UNICODE}\nendstream")
    out = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode("latin-1")
    table = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R {trailer} >>\nstartxref\n{table}\n%%EOF\n".encode()
    return bytes(out)


def encrypted_pdf_bytes() -> bytes:
    """A PDF whose standard security handler (RC4, revision 2) rejects the empty password."""
    encrypt = f"/Encrypt << /Filter /Standard /V 1 /R 2 /O <{'11' * 32}> /U <{'22' * 32}> /P -4 >>"
    return pdf_bytes([["Secret"]], trailer=f"{encrypt} /ID [<{'33' * 16}> <{'33' * 16}>]")


def _shown(line: str) -> str:
    if line.isascii():
        return f"/F1 12 Tf ({_escape(line)})"
    return f"/F2 12 Tf <{line.encode('utf-16-be').hex()}>"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")


def xhtml(body: str, head: str = "<title/>") -> str:
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<!DOCTYPE html>\n'
        f'<html xmlns="http://www.w3.org/1999/xhtml"><head>{head}</head><body>{body}</body></html>'
    )


def nav(entries: Sequence[tuple[str, str]]) -> str:
    links = "".join(f'<li><a href="{href}">{name}</a></li>' for href, name in entries)
    return xhtml(
        f'<nav epub:type="toc"><ol>{links}</ol></nav><nav epub:type="landmarks"><a href="a.xhtml">No</a></nav>'
    )


def ncx(entries: Sequence[tuple[str, str]]) -> str:
    points = "".join(
        f'<navPoint><navLabel><text>{name}</text></navLabel><content src="{href}"/></navPoint>'
        for href, name in entries
    )
    return (
        '<?xml version="1.0"?><!DOCTYPE ncx PUBLIC "-//NISO//DTD ncx 2005-1//EN" "ncx.dtd">'
        f"<ncx><docTitle><text>The Book</text></docTitle><navMap>{points}</navMap></ncx>"
    )


def write_epub(
    path: Path,
    chapters: Mapping[str, str],
    contents: tuple[str, str] | None = None,
    extra: Mapping[str, str | bytes] | None = None,
    spine: Sequence[str] | None = None,
) -> Path:
    """An EPUB; `contents` is the name and text of its table of contents, `spine` an order other than the chapters'."""
    names = list(chapters)
    items = [
        f'<item id="c{index}" href="{name}" media-type="application/xhtml+xml"/>' for index, name in enumerate(names)
    ]
    if contents:
        kind = "application/x-dtbncx+xml" if contents[0].endswith("ncx") else "application/xhtml+xml"
        items.append(f'<item id="toc" href="{contents[0]}" media-type="{kind}" properties="nav"/>')
    order = "".join(f'<itemref idref="c{names.index(name)}"/>' for name in spine or names)
    package = f"<package><manifest>{''.join(items)}</manifest><spine>{order}</spine></package>"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mimetype", "application/epub+zip", zipfile.ZIP_STORED)
        archive.writestr("META-INF/container.xml", CONTAINER)
        archive.writestr("OEBPS/book.opf", package)
        for name, text in ([contents] if contents else []) + list(chapters.items()):
            archive.writestr(f"OEBPS/{name}", text)
        for name, data in (extra or {}).items():
            archive.writestr(name, data)
    return path
