"""Makes the stand-ins of a test published code, beside that which the table has."""

from functools import cache

from bcos_kernels.adopt import fingerprint, published


@cache
def digest(kind, roots=("forward",)):
    """What the code of a class is published as, before a test changes any of it."""
    return fingerprint.of(kind.__mro__, roots).digest


def publish(monkeypatch, rows):
    """``rows`` are the section, the class and the formula, and the methods that are read, where forward is not all."""
    table = {section: dict(known) for section, known in published._table().items()}
    for section, kind, formula, *roots in rows:
        table[section][digest(kind, *roots)] = {"formula": formula}
    monkeypatch.setattr(published, "_table", lambda: table)
    monkeypatch.setattr(published, "CODES", {})
