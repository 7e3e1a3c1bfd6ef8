"""What all notebooks together found: headline results beside the papers', real images read, time spent."""


def headlines(notebooks: dict[str, dict]) -> list[dict]:
    """The few results to read first, as {label, value, paper, reference} of strings."""
    return []
