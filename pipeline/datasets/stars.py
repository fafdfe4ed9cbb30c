"""A photo library's own ratings: the stars of Lightroom, digiKam, darktable and others, as XMP has them.

xmp:Rating is 1 to 5 stars; 0 is an image that nobody rated, -1 one that was rejected, which says nothing of how good it
is. It stands in a sidecar, name.xmp or name.jpg.xmp, or else in the image file. Nothing is written.
"""

import mmap
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
_MOST_BYTES = 2**24  # of XMP, which has some kilobytes, with a drawn mask some megabytes


def read(source: Source) -> Listing:
    """Lists the images of a folder, with their stars; those without are listed as unrated."""
    folder, paths = list_images(source, "stars", besides=".xmp")
    found = {path: find_rating(folder / path) for path in paths}
    rejected, unrated = ([path for path, (stars, _) in found.items() if stars == kind] for kind in (-1, 0))
    if rejected or unrated:
        told = f"{len(rejected)} rejected (-1) and {len(unrated)} not rated images are left out"
        print(f"manifest: {escape_path(str(folder))}: {told}")
    if len(rejected + unrated) == len(found):
        raise UserError(f"{folder}: no image has stars: save the metadata to files, or to .xmp beside them, first")
    listed = [
        Listed(path, path, () if stars in (-1, 0) else (stars,), None, escape_path(str(where)))
        for path, (stars, where) in found.items()
    ]
    recipe = DATASETS["stars"]
    return Listing(folder, listed, recipe.score_range, recipe.accuracy_threshold, recipe.meaning)


def find_rating(image: Path) -> tuple[float, Path]:
    """Returns the rating of an image, 0 where there is none, and the file that it stands in: a sidecar's comes first.

    Raises:
        UserError: XMP that is damaged, has a DTD, or has a rating that is no number.
    """
    sidecars = [Path(f"{stem}{end}") for stem in (image, image.with_suffix("")) for end in (".xmp", ".XMP")]
    for file in (*(one for one in sidecars if one.is_file()), image):
        try:
            packet = _find_packet(file) if file == image else file.read_bytes()[:_MOST_BYTES]
            rating = None if packet is None else parse_rating(packet)
        except (OSError, ValueError, expat.ExpatError) as error:
            raise UserError(f"{file}: its XMP is damaged ({error}): save the metadata again, or remove it") from error
        if rating is not None:
            return read_number(rating, "xmp:Rating", str(file)), file
    return 0.0, image


def _find_packet(image: Path) -> bytes | None:
    """Finds the first XMP packet in a file of any format; packets are made to be found by their text."""
    try:
        with open(image, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start = data.find(_PACKET[0])
            end = data.find(_PACKET[1], start, start + _MOST_BYTES)
            return data[start : end + len(_PACKET[1])] if 0 <= start < end else None
    except (OSError, ValueError):  # not to be opened, or empty: the manifest says so
        return None


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

    def read_text(text: str) -> None:
        if inside[-3:] == [*_PLACE, _RATING] and text.strip():
            found.append(text)

    def refuse(*_: object) -> None:
        raise ValueError("it has a DTD")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True  # an element's text in one piece
    parser.StartElementHandler, parser.CharacterDataHandler = start, read_text
    parser.EndElementHandler = lambda _: inside.pop()
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(packet, True)
    return next((text.strip() for text in found if text.strip()), None)
