"""A contact sheet of training images, drawn with Pillow."""

from PIL import Image, ImageDraw, ImageFont

from trainer.data.preview.seen_image import SeenImage, SeenRow

_TILE_PX = 168
_GAP_PX = 12
_MARGIN_PX = 24
_LINE_PX = 16
_HEADING_PX = 28
_INK, _MUTED, _PAPER = (27, 28, 30), (103, 107, 114), (255, 255, 255)


def draw_sheet(rows: list[SeenRow], *, title: str) -> Image.Image:
    """Draw a row for each image with captions; the first column shows the image as evaluated."""
    num_visits = max(len(row.visits) for row in rows)
    num_lines = 2 if any(len(_caption(seen)) > 1 for row in rows for seen in row.visits) else 1
    tile_px = _tile_px(rows[0].evaluation.pixels.shape[0])
    step_x, step_y = tile_px + _GAP_PX, tile_px + num_lines * _LINE_PX + _GAP_PX + 4
    width = 2 * _MARGIN_PX + (num_visits + 1) * step_x
    height = 2 * _MARGIN_PX + 2 * _HEADING_PX + len(rows) * step_y
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (_MARGIN_PX, _MARGIN_PX - 4), title, _INK, width - 2 * _MARGIN_PX, size=17)
    for row_index, row in enumerate(rows):
        y = _MARGIN_PX + 2 * _HEADING_PX + row_index * step_y
        for column, seen in enumerate([row.evaluation, *row.visits]):
            x = _MARGIN_PX + column * step_x + (_GAP_PX if column else 0)
            if row_index == 0:
                heading = f"visit {column}" if column else "as evaluated"
                _write(draw, (x, y - _HEADING_PX + 6), heading, _MUTED, tile_px)
            sheet.paste(_enlarge(seen, tile_px), (x, y))
            for line, text in enumerate(_caption(seen)):
                _write(draw, (x, y + tile_px + 3 + line * _LINE_PX), text, _MUTED if line else _INK, tile_px)
    return sheet


def _caption(seen: SeenImage) -> list[str]:
    shown = seen.visible_parts()
    return [shown[0][0]] if len(shown) == 1 else [f"{share:.0%} {name}" for name, share in shown]


def _tile_px(size_px: int) -> int:
    """Return the side of a tile: a whole multiple for small images, so that their pixels are visible."""
    return size_px * max(1, round(_TILE_PX / size_px)) if size_px <= _TILE_PX else _TILE_PX


def _enlarge(seen: SeenImage, tile_px: int) -> Image.Image:
    image = Image.fromarray(seen.pixels)
    resampling = Image.Resampling.NEAREST if image.width < tile_px else Image.Resampling.LANCZOS
    return image.resize((tile_px, tile_px), resampling)


def _write(
    draw: ImageDraw.ImageDraw,
    position: tuple[int, int],
    text: str,
    color: tuple[int, int, int],
    width_px: int,
    size: int = 13,
) -> None:
    """Write one line, truncated with dots if it is too long."""
    font = ImageFont.load_default(size)
    shown = text = " ".join(text.encode(errors="replace").decode().split())
    while shown and draw.textlength(shown, font=font) > width_px:
        text = text[:-1]
        shown = text.rstrip() + "..." if text else ""
    draw.text(position, shown, fill=color, font=font)
