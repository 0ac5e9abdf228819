"""One module per backend; each answers ``why_not(call) -> list[str]``, empty when it serves the call."""
