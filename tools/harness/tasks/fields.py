"""Columns of the drawn documents, as lmms-eval's tasks read them."""


def images(doc: dict) -> list:
    return [image.convert("RGB") for image in doc["images"]]
