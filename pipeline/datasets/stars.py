"""A photo library's own ratings: the stars of Lightroom, digiKam, darktable and others, as XMP has them.

xmp:Rating is 1 to 5 stars; 0 is an image that nobody rated, -1 one that was rejected, which says nothing of how good it
is. It stands in a sidecar, name.xmp or name.jpg.xmp, or else in the image file. Nothing is written.
"""

import mmap
from collections import Counter
from pathlib import Path
from xml.parsers import expat

from charm.images.find import escape_path
from charm.labels.tables import read_number
from charm.runtime.errors import UserError
from pipeline.datasets.folder import list_images
from pipeline.manifest.labels import Listed, Listing, Source
from pipeline.settings.recipes import DATASETS

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_RATING = "http://ns.adobe.com/xap/1.0/ Rating"
_PLACE = [f"{_RDF} RDF", f"{_RDF} Description"]  # of the image's own properties, not of images that it was made from
_PACKET = b"<x:xmpmeta", b"</x:xmpmeta>"
_MOST_BYTES = 2**24  # of a sidecar; they hold some kilobytes, with a drawn mask some megabytes
_WITHOUT = {0: "not rated (0 or no xmp:Rating)", -1: "rejected (-1)"}


def read(source: Source) -> Listing:
    """Lists the images of a folder, with their stars; those without count as unrated."""
    folder, paths = list_images(source, "stars", besides=".xmp")
    listed, without = [], Counter[str]()
    for path in paths:
        stars, where = find_rating(folder / path)
        if stars in _WITHOUT:
            without[_WITHOUT[int(stars)]] += 1
        target = () if stars in _WITHOUT else (stars,)
        listed.append(Listed(path, path, target, None, escape_path(str(where))))
    if without:
        counts = ", ".join(f"{count} {kind}" for kind, count in without.items())
        print(f"manifest: {folder}: of {len(listed)} images {counts}: left out")
    if without.total() == len(listed):
        raise UserError(f"{folder}: no image has stars: save the metadata to files, or to .xmp beside them, first")
    recipe = DATASETS["stars"]
    return Listing(folder, listed, recipe.score_range, recipe.accuracy_threshold, recipe.meaning)


def find_rating(image: Path) -> tuple[float, Path]:
    """Returns the rating of an image, 0 where there is none, and the file that it stands in: a sidecar's comes first.

    Raises:
        UserError: XMP that is damaged, has a DTD, or has a rating that is no number.
    """
    stems = (image, image.with_suffix(""))
    sidecars = [Path(f"{stem}{ending}") for stem in stems for ending in (".xmp", ".XMP")]
    for file in (*(one for one in sidecars if one.is_file()), image):
        try:
            packet = _find_packet(file) if file == image else _read_sidecar(file)
            rating = None if packet is None else parse_rating(packet)
        except (OSError, ValueError, expat.ExpatError) as error:
            if file == image and isinstance(error, OSError):  # the manifest says so
                continue
            raise UserError(f"{file}: its XMP is damaged ({error}): save the metadata again, or remove it") from error
        if rating is not None:
            return read_number(rating, "xmp:Rating", str(file)), file
    return 0.0, image


def _read_sidecar(file: Path) -> bytes:
    with open(file, "rb") as opened:
        data = opened.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"more than {_MOST_BYTES >> 20} MB")
    return data


def _find_packet(image: Path) -> bytes | None:
    """Finds the first XMP packet in a file of any format; packets are made to be found by their text."""
    if not image.is_file() or not image.stat().st_size:
        return None
    with open(image, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(_PACKET[0])
        end = data.find(_PACKET[1], start, start + _MOST_BYTES)
        return data[start : end + len(_PACKET[1])] if 0 <= start < end else None


def parse_rating(packet: bytes) -> str | None:
    """Returns the text of xmp:Rating, an attribute or an element; None if there is none.

    Raises:
        ExpatError, ValueError: not XML, or XML with a DTD, whose entities could grow without end.
    """
    found: list[str] = []
    inside: list[str] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        inside.append(name)
        if inside[-2:] == _PLACE and _RATING in attributes:
            found.append(attributes[_RATING])
        if inside[-3:] == [*_PLACE, _RATING]:
            found.append("")

    def read(text: str) -> None:
        if inside[-3:] == [*_PLACE, _RATING]:
            found[-1] += text

    def refuse(*_: object) -> None:
        raise ValueError("it has a DTD")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler, parser.CharacterDataHandler = start, read
    parser.EndElementHandler = lambda _: inside.pop()
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(packet, True)
    return next((text.strip() for text in found if text.strip()), None)
