"""Sheets of text and lines, as PDFs with a text layer and as photographs."""

import pypdfium2
from PIL import Image, ImageFilter

WIDTH, HEIGHT = 595, 842  # points of A4
_FONT = "<</Type /Font /Subtype /Type1 /BaseFont /{} /Encoding /WinAnsiEncoding>>"


class Sheet:
    """Drawing commands of a PDF's page, in points from the upper left corner."""

    def __init__(self, width: int = WIDTH, height: int = HEIGHT) -> None:
        self.size = width, height
        self._commands: list[str] = []

    def text(
        self, x: float, y: float, text: str, size: float = 10, bold: bool = False
    ) -> None:
        escaped = text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
        font = f"/{'B' if bold else 'R'} {size} Tf"
        place = f"{x} {self.size[1] - y} Td"
        self._commands.append(f"BT {font} {place} ({escaped}) Tj ET")

    def texts(self, x: float, y: float, *lines: str, size: float = 10) -> None:
        for number, line in enumerate(lines):
            self.text(x, y + number * size * 1.5, line, size)

    def fill(self, box: tuple[float, float, float, float], colour: str) -> None:
        x, y, width, height = box
        area = f"{x} {self.size[1] - y - height} {width} {height} re f"
        self._commands.append(f"{colour} rg {area} 0 0 0 rg")

    def frame(self, box: tuple[float, float, float, float]) -> None:
        x, y, width, height = box
        self._commands.append(
            f"0.6 w {x} {self.size[1] - y - height} {width} {height} re S"
        )

    def table(self, y: float, columns: list[int], *rows: list[str]) -> float:
        self.fill((50, y - 14, WIDTH - 100, 20), "0.9 0.92 0.91")
        for number, row in enumerate(rows):
            for x, cell in zip(columns, row, strict=True):
                self.text(x, y + 22 * number, cell, bold=number == 0)
            self.fill((50, y + 22 * number + 6, WIDTH - 100, 0.5), "0.7 0.7 0.7")
        return y + 22 * len(rows)

    def stream(self) -> bytes:
        return "\n".join(self._commands).encode("cp1252")


def pdf(*sheets: Sheet) -> bytes:
    """A PDF with text, which has a text layer therefore."""
    fonts = f"/R {_FONT.format('Helvetica')} /B {_FONT.format('Helvetica-Bold')}"
    kids = " ".join(f"{3 + 2 * number} 0 R" for number in range(len(sheets)))
    pages = f"<</Type /Pages /Kids [{kids}] /Count {len(sheets)}>>"
    file = b"%PDF-1.7\n1 0 obj <</Type /Catalog /Pages 2 0 R>> endobj\n"
    file += f"2 0 obj {pages} endobj\n".encode()
    for number, sheet in enumerate(sheets):
        content, (width, height) = sheet.stream(), sheet.size
        file += (
            f"{3 + 2 * number} 0 obj <</Type /Page /Parent 2 0 R /MediaBox "
            f"[0 0 {width} {height}] /Contents {4 + 2 * number} 0 R "
            f"/Resources <</Font <<{fonts}>>>>>> endobj\n"
            f"{4 + 2 * number} 0 obj <</Length {len(content)}>> stream\n"
        ).encode()
        file += content + b"\nendstream endobj\n"
    return file + b"trailer <</Root 1 0 R>>\n%%EOF\n"


def picture(sheet: Sheet, angle: float = 0, paper: str = "#f7f4ec") -> Image.Image:
    """A photograph of a sheet: a bit blurred, on coloured paper, lying askew."""
    document = pypdfium2.PdfDocument(pdf(sheet))
    drawn = document[0].render(scale=2).to_pil().convert("L")
    ink = drawn.filter(ImageFilter.GaussianBlur(0.7))
    image = Image.composite(
        Image.new("RGB", ink.size, paper), Image.new("RGB", ink.size, "#23211f"), ink
    )
    return image.rotate(
        angle, Image.Resampling.BICUBIC, expand=True, fillcolor="#8c8177"
    )
