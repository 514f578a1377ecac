"""No function of its own, as it has no `handle`. Edit a phrase: the next call greets with it."""

PHRASES = {"en": "Hello, {name}!", "es": "¡Hola, {name}!", "de": "Guten Tag, {name}!"}


def phrase(language):
    return PHRASES.get(language, PHRASES["en"])
