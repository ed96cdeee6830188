"""The values of `status`, and how image files are read, in the words of `signature.json`."""

from typing import Final

from trainer.data.decode.limits import MAX_IMAGE_PIXELS

# Values of `status`. Words and not numbers: they are readable in JSON, and new ones do not change old ones.
STATUS_OK: Final = "ok"
STATUS_NOT_AN_IMAGE: Final = "not_an_image"
STATUS_UNDECODABLE: Final = "undecodable"
STATUS_TOO_LARGE: Final = "too_large"
# Images that the graph would decode differently from training; a client can re-encode them.
STATUS_TRANSPARENT: Final = "transparent"
STATUS_ANIMATED: Final = "animated"
STATUS_SIXTEEN_BIT: Final = "sixteen_bit"
STATUS_CMYK: Final = "cmyk"
STATUS_ROTATED: Final = "rotated"
STATUS_UNSUPPORTED: Final = "unsupported"
# For pixels, not files.
STATUS_BAD_PIXELS: Final = "bad_pixels"
# Every status but ok, as the end of a sentence about the image.
STATUS_IN_WORDS = {
    STATUS_NOT_AN_IMAGE: "is not an image that the model reads (JPEG, PNG, GIF, BMP or WebP)",
    STATUS_UNDECODABLE: "is a broken image",
    STATUS_TOO_LARGE: f"has more than {MAX_IMAGE_PIXELS:,} pixels",
    STATUS_TRANSPARENT: "is transparent, and a GIF, a WebP or very large; send it on white",
    STATUS_ANIMATED: "is an animated WebP or PNG; send its first frame",
    STATUS_SIXTEEN_BIT: "is a PNG of 16 bits; send it with 8",
    STATUS_CMYK: "is a JPEG of four colours; send it as RGB",
    STATUS_ROTATED: "is a PNG with compressed metadata, which may turn it; send it upright, without metadata",
    STATUS_UNSUPPORTED: "is a GIF of parts or a BMP with a palette or of an unusual kind; send it as a PNG",
    STATUS_BAD_PIXELS: "has pixels that are NaN, infinite or outside 0 to 255",
}
STATUSES = (STATUS_OK, *STATUS_IN_WORDS)
# Describes `trainer.data.decode.image_file`, of which the graph implements a part.
HOW_FILES_ARE_READ = (
    "an image file of any size, read by its content as training read it: JPEG, PNG, GIF, BMP or WebP; turned as EXIF "
    "or XMP say; transparency put on white; of a GIF the first frame; RGB of 8 bits; colour profiles ignored. What the "
    "graph cannot read in this way has a status that says why. trainer predict, the Python client and the programs in "
    "README.md re-encode such a file, and TIFF, PPM, AVIF and JPEG 2000, before they send it: first frame, upright, "
    "on white, RGB of 8 bits (of 16 the uppermost in use), as PNG"
)
