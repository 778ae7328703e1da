"""What is raised where a rule of batching is broken."""


class Broken(BaseException):
    """Is no Exception, so that no code under test takes it for the device's."""


def ensure(is_so: object, what: str, *about: object) -> None:
    """Raises Broken unless it is so."""
    if not is_so:
        raise Broken(" ".join([what, *map(repr, about)]))
