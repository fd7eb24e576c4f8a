"""Pages of a PDF: the picture, and the boxes of a passage's words, measured against the pixels that were drawn."""

import io
import struct
import zlib

import numpy as np
import pytest
from make_books import encrypted_pdf_bytes, pdf_bytes

from mamba_ssm.errors import BookError
from mamba_ssm.text import read_pieces
from mamba_ssm.text.pdf_page import MAX_PIXELS, draw_page, word_boxes

HEAD = "A Garden Book"
LINES = [
    "The old oak stands at the north gate.",
    "Beside it the chloro-",
    "plast of every leaf turns light into sugar,",
    "and the Anglo-",
    "Saxon name of the tree is ac.",
]


def pixels(png):
    """A PNG (RFC 2083) of 8 bits a colour, filtered by rows above, decoded without the code under test."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    data, parts = io.BytesIO(png[8:]), {}
    while head := data.read(8):
        length, kind = struct.unpack(">I4s", head)
        body = data.read(length)
        assert struct.unpack(">I", data.read(4))[0] == zlib.crc32(kind + body)
        parts[kind] = body
    width, height, depth, colour, *_ = struct.unpack(">IIBBBBB", parts[b"IHDR"])
    assert (depth, colour) == (8, 2)
    rows = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width)
    assert set(rows[:, 0].tolist()) <= {2}
    return np.cumsum(rows[:, 1:], axis=0, dtype=np.uint8).reshape(height, width, 3)


def dark(picture, top, bottom, left=0.0, right=1.0):
    """The number of dark pixels in a rectangle, given in fractions of the page."""
    height, width, _ = picture.shape
    part = picture[int(top * height) : int(bottom * height) + 1, int(left * width) : int(right * width) + 1]
    return int((part < 128).all(-1).sum())


@pytest.fixture
def garden(tmp_path):
    path = tmp_path / "garden.pdf"
    path.write_bytes(pdf_bytes([["Nothing here."], [HEAD, *LINES], ["The old oak is on this page, too."]]))
    return path


def text_of(path, page):
    return "".join(piece.text for piece in read_pieces(path) if piece.page == page)


def test_page_is_drawn_at_the_width_asked_for(garden):
    picture = pixels(draw_page(garden, 2, 600))
    assert picture.shape == (777, 600, 3)  # 612 by 792 points
    assert (picture == 255).mean() > 0.9
    assert (picture < 128).any()


def test_boxes_hold_the_ink_of_a_passage_and_no_other(garden):
    text = text_of(garden, 2)
    start = text.index("the chloroplast")
    boxes = word_boxes(garden, 2, text, start, text.index("turns light into") + len("turns light into"))
    assert len(boxes) == 2  # the two lines of the page, though the text has joined the divided word
    picture = pixels(draw_page(garden, 2, 1200))
    for box, share in zip(boxes, (9 / 17, 30 / 35), strict=True):  # of the letters of the lines
        line = dark(picture, box.top, box.bottom)
        assert dark(picture, box.top, box.bottom, box.left, box.right) / line == pytest.approx(share, abs=0.1)


@pytest.mark.parametrize("word", ["chloroplast", "Anglo-Saxon"])
def test_words_divided_at_a_lines_end_have_a_box_on_each_line(garden, word):
    text = text_of(garden, 2)
    start = text.index(word)
    first, second = word_boxes(garden, 2, text, start, start + len(word))
    assert first.bottom <= second.top + 0.005
    assert second.left < first.left


def test_text_around_tells_equal_words_apart(tmp_path):
    path = tmp_path / "twice.pdf"
    path.write_bytes(pdf_bytes([["Oaks live 900 years.", "Elms live 900 years."]]))
    text = text_of(path, 1)
    first = word_boxes(path, 1, text, text.index("900"), text.index("900") + 3)
    second = word_boxes(path, 1, text, text.rindex("900"), text.rindex("900") + 3)
    assert len(first) == len(second) == 1
    assert first[0].bottom <= second[0].top + 0.005


def test_running_head_that_the_text_lacks_does_not_stop_the_alignment(tmp_path):
    path = tmp_path / "head.pdf"
    path.write_bytes(pdf_bytes([[HEAD, "The old oak stands", "Page 7 of the Garden Book", "at the north gate."]]))
    text = "The old oak stands at the north gate."
    boxes = word_boxes(path, 1, text, 0, len(text))
    assert len(boxes) == 2
    assert boxes[1].top > boxes[0].bottom + 0.01  # the line between is not boxed


def test_text_of_another_page_is_not_found_in_the_odd_word(garden):
    text = text_of(garden, 2) + "Quite other words follow on the next page, of the sea and the wind and the gulls."
    start = text.index("Quite")
    assert word_boxes(garden, 2, text, start, len(text)) == []


def test_turned_page(tmp_path):
    data = pdf_bytes([["An oak."]]).replace(b"/MediaBox [0 0 612 792]", b"/MediaBox [0 0 612 792] /Rotate 90")
    path = tmp_path / "turned.pdf"
    path.write_bytes(data)
    (word,) = word_boxes(path, 1, "An oak.", 3, 6)
    picture = pixels(draw_page(path, 1, 1200))
    assert picture.shape[1] > picture.shape[0]
    assert 0 < dark(picture, word.top, word.bottom, word.left, word.right) < dark(picture, 0, 1)


def test_page_of_absurd_size_is_drawn_small(tmp_path):
    path = tmp_path / "tall.pdf"
    path.write_bytes(pdf_bytes([["An oak."]]).replace(b"[0 0 612 792]", b"[0 0 2 14400]"))
    height, width, _ = pixels(draw_page(path, 1, 2400)).shape
    assert height * width <= MAX_PIXELS * 1.05  # whole pixels


@pytest.mark.parametrize("number", [0, 4, -1])
def test_page_that_is_not_there(garden, number):
    with pytest.raises(BookError, match="no page"):
        draw_page(garden, number, 100)
    with pytest.raises(BookError, match="no page"):
        word_boxes(garden, number, "oak", 0, 3)


def test_width_out_of_range(garden):
    with pytest.raises(ValueError, match="width"):
        draw_page(garden, 1, 100_000)


def test_encrypted_pdf(tmp_path):
    path = tmp_path / "locked.pdf"
    path.write_bytes(encrypted_pdf_bytes())
    with pytest.raises(BookError, match="encrypted"):
        draw_page(path, 1, 100)
