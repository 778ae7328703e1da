"""Says why a picture is not decoded."""

from serving.errors import InvalidRequestError

WHOLE = "send a whole PNG, JPEG or WebP file"
SMALLER = "scale it down; 28 x 28 is enough"


class PictureError(Exception):
    """The picture is not decoded; what is wrong with it is worded to follow "pictures[3] "."""

    def __init__(self, what: str, cure: str = WHOLE) -> None:
        super().__init__(what)
        self.what, self.cure = what, cure

    def at(self, index: int) -> InvalidRequestError:
        """Returns the refusal of the request, of which this is the picture at `index`."""
        return InvalidRequestError("BAD_PICTURE", f"pictures[{index}] {self.what}", self.cure)
