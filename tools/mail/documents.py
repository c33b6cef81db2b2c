"""The documents of a folder of mail."""

from collections.abc import Callable

from PIL import Image

from .sheets import WIDTH, Sheet, pdf, picture


def _harbour() -> Sheet:
    sheet = Sheet()
    sheet.fill((0, 0, WIDTH, 8), "0.05 0.36 0.45")
    sheet.text(50, 70, "Harbour Supplies Ltd", 20, bold=True)
    sheet.texts(
        50, 90, "14 Quay Street, Bristol BS1 4RJ", "accounts@harbour.example", size=9
    )
    sheet.texts(
        380,
        70,
        "Invoice 4711-08",
        "Date: 17 January 2024",
        "Due: 16 February 2024",
        size=11,
    )
    sheet.texts(
        50, 160, "To", "Miller & Sons Boatyard", "Dock Road 3", "Falmouth TR11 3XA"
    )
    end = sheet.table(
        270,
        [56, 300, 380, 470],
        ["Item", "Quantity", "Price", "Amount"],
        ["Marine rope, 12 mm, 50 m", "4", "38.50", "154.00"],
        ["Stainless shackle, 8 mm", "25", "3.20", "80.00"],
        ["Epoxy resin, 5 kg", "2", "71.25", "142.50"],
        ["Delivery", "1", "12.00", "12.00"],
    )
    for number, (name, amount) in enumerate(
        (("Net", "388.50"), ("VAT 20 %", "77.70"), ("Total GBP", "466.20"))
    ):
        y = end + 18 + 20 * number
        sheet.text(380, y, name, 11, bold=number == 2)
        sheet.text(470, y, amount, 11, bold=number == 2)
    sheet.texts(
        50,
        560,
        "Please pay within 30 days to GB00 HARB 2024 0117 4711 08.",
        "Thank you for your order.",
    )
    return sheet


def _nordlicht() -> Sheet:
    sheet = Sheet()
    sheet.text(50, 70, "NORDLICHT", 24, bold=True)
    sheet.texts(
        50,
        92,
        "Werkstatt f\u00fcr Leuchten \u00b7 Hafenstra\u00dfe 8 \u00b7 24103 Kiel",
        size=9,
    )
    sheet.texts(50, 150, "Museum am Wall", "Am Wall 207", "28195 Bremen")
    sheet.text(50, 240, "Rechnung 2024-031", 15, bold=True)
    sheet.text(430, 240, "Kiel, 4. M\u00e4rz 2024")
    sheet.texts(
        50, 270, "F\u00fcr die Instandsetzung der Leuchten im Foyer berechnen wir:"
    )
    end = sheet.table(
        310,
        [56, 300, 380, 470],
        ["Leistung", "Anzahl", "Preis", "Betrag"],
        ["Pendelleuchte gereinigt und verkabelt", "6", "145,00", "870,00"],
        ["Fassung E27, Porzellan", "18", "9,80", "176,40"],
        ["Anfahrt Kiel\u2013Bremen", "1", "120,00", "120,00"],
    )
    for number, (name, amount) in enumerate(
        (("Netto", "1.166,40"), ("USt. 19 %", "221,62"), ("Gesamt EUR", "1.388,02"))
    ):
        y = end + 18 + 20 * number
        sheet.text(380, y, name, 11, bold=number == 2)
        sheet.text(470, y, amount, 11, bold=number == 2)
    sheet.texts(
        50,
        560,
        "Zahlbar ohne Abzug bis zum 3. April 2024.",
        "Vielen Dank f\u00fcr den Auftrag!",
    )
    return sheet


def _letter() -> Sheet:
    sheet = Sheet()
    sheet.texts(60, 80, "Dr. Amara Osei", "22 Linden Grove", "Leeds LS7 1AB", size=11)
    sheet.text(400, 140, "2 May 2024", 11)
    sheet.text(60, 200, "Termination of the lease of 5 Mill Lane", 12, bold=True)
    sheet.texts(
        60,
        235,
        "Dear Ms Whitfield,",
        "",
        "I give notice that I will leave the flat at 5 Mill Lane on 31 July,",
        "three months after the date of this letter, as the lease says in clause 9.",
        "",
        "Please tell me when you would like to inspect the rooms. The keys, four for",
        "the front door and two for the cellar, will be handed over on the last day.",
        "",
        "Yours sincerely,",
        "",
        "Amara Osei",
        size=11,
    )
    return sheet


def _form() -> Sheet:
    sheet = Sheet(480, 520)
    sheet.text(40, 55, "Registration of a bicycle", 17, bold=True)
    fields = (
        ("Name", "Jonas Lindqvist"),
        ("Frame number", "WTU 338 K 0195"),
        ("Colour", "dark green"),
        ("Date", "09/04/2024"),
    )
    for number, (name, value) in enumerate(fields):
        y = 95 + 70 * number
        sheet.text(40, y, name, 9)
        sheet.frame((40, y + 8, 400, 32))
        sheet.text(52, y + 30, value, 15)
    sheet.frame((40, 385, 14, 14))
    sheet.text(42, 396, "X", 12, bold=True)
    sheet.text(64, 396, "The fee of 5.00 has been paid.")
    return sheet


def _receipt(shop: str, *lines: tuple[str, str]) -> Sheet:
    sheet = Sheet(300, 320 + 24 * len(lines))
    sheet.text(60, 45, shop, 18, bold=True)
    sheet.texts(60, 66, "Ferry Terminal 2", "21.06.2024  14:32", size=10)
    for number, (name, price) in enumerate(lines):
        bold = number == len(lines) - 1
        sheet.text(40, 125 + 24 * number, name, 12, bold)
        sheet.text(215, 125 + 24 * number, price, 12, bold)
    sheet.text(80, 155 + 24 * len(lines), "Have a good trip!", 10)
    return sheet


def _stock() -> Sheet:
    sheet = Sheet()
    sheet.text(50, 70, "Stock at 30 June 2024", 18, bold=True)
    names = ("Anchor", "Ball fender", "Cleat", "Deck brush", "Fuse 10 A", "Hose clamp")
    sheet.table(
        120,
        [56, 200, 320, 440],
        ["Article", "Number", "Store", "Count"],
        *(
            [
                f"{name} {size}",
                str(1000 + 37 * n + size),
                "ABC"[(n + size) % 3],
                str(7 * n + 3 * size),
            ]
            for n, name in enumerate(names)
            for size in (1, 2, 3, 4)
        ),
    )
    return sheet


_CAFE = ("Flat white", "3.40"), ("Cheese roll", "4.10"), ("Total EUR", "7.50")
_FUEL = ("Diesel 41.20 l", "69.22"), ("Wash", "9.00"), ("Total EUR", "78.22")

# Each is drawn as a PDF or as an image.
DOCUMENTS: dict[str, Callable[[], bytes | Image.Image]] = {
    "forms/bicycle.png": lambda: picture(_form(), paper="#eef3ea"),
    "invoices/Harbour 4711-08.pdf": lambda: pdf(_harbour(), Sheet()),
    "invoices/Nordlicht 2024-031.pdf": lambda: pdf(_nordlicht()),
    "letters/Mill Lane.pdf": lambda: pdf(_letter()),
    "receipts/caf\u00e9.jpg": lambda: picture(_receipt("Caf\u00e9 Pier 9", *_CAFE), 90),
    "receipts/fuel.jpg": lambda: picture(_receipt("Harbour Fuel", *_FUEL), 2.5),
    "scans/0007.pdf": lambda: b"%PDF-1.4\n1 0 obj <<",
    "scans/faded.png": lambda: picture(Sheet(400, 500), paper="#fdfdfb"),
    "tables/Stock June.pdf": lambda: pdf(_stock()),
}
