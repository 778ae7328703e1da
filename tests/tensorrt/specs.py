"""Objects of TensorRT's real classes that refuse what the classes do not have.

`unittest.mock.create_autospec` sees only the names of methods of a compiled class. Their docstrings hold the whole
signature, so here a call must fit one of the overloads: the number of arguments, their names, and their types as far
as they can be told. What a method returns is what the test gave, or an object of the class that it is said to return.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

Call = tuple[str, str, tuple[Any, ...], dict[str, Any]]  # class, method, arguments


class Spec:
    """An object of `cls`. `answers`: method -> what to return or to call instead; property -> its value."""

    def __init__(self, cls: type, log: list[Call], **answers: Any) -> None:
        missing = [name for name in answers if not hasattr(cls, name)]
        assert not missing, f"{cls.__name__} of {_release(cls)} has no {missing}"
        self.__dict__.update(_cls=cls, _log=log, answers=answers)

    def __getattr__(self, name: str) -> Any:
        cls = self._cls
        found = inspect.getattr_static(cls, name, None)
        if found is None:
            raise AttributeError(f"{cls.__name__} of {_release(cls)} has no {name!r}")
        if isinstance(found, property):
            if name not in self.answers:
                raise AssertionError(f"the test did not say what {cls.__name__}.{name} is")
            return self.answers[name]
        return lambda *args, **kwargs: self._call(name, args, kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        found = inspect.getattr_static(self._cls, name)  # AttributeError where there is none
        assert isinstance(found, property) and found.fset, f"{self._cls.__name__}.{name} cannot be set"
        self._log.append((self._cls.__name__, name, (value,), {}))
        self.answers[name] = value

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        returned = fitting_overload(self._cls, name, args, kwargs)
        self._log.append((self._cls.__name__, name, args, kwargs))
        if name in self.answers:
            answer = self.answers[name]
            return answer(*args, **kwargs) if callable(answer) and not isinstance(answer, Spec) else answer
        return self._default(returned)

    def _default(self, returned: str) -> Any:
        simple: dict[str, Any] = {"bool": True, "None": None, "int": 0, "str": "", "list[str]": []}
        if returned in simple:
            return simple[returned]
        return Spec(_class_called(self._cls, returned), self._log)

    # What Python looks up on the class, not on the object.
    def __iter__(self) -> Iterator[Any]:
        return (self.get_layer(index) for index in range(self.num_layers))

    def __enter__(self) -> "Spec":
        return self

    def __exit__(self, *_: object) -> None: ...


def _bindings_of(cls: type) -> Any:
    """The module with all the classes of the same release."""
    return sys.modules[cls.__module__.partition(".")[0]]


def _release(cls: type) -> str:
    module = _bindings_of(cls)
    return f"{module.__name__} {module.__version__}"


def _class_called(cls: type, annotation: str) -> Any:
    """The class that a signature of `cls` names, in Python's way or in C++'s; None if there is none."""
    return getattr(_bindings_of(cls), re.split(r"\.|::", annotation)[-1], None)


def fitting_overload(cls: type, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The return annotation of the overload that takes the arguments. Raises AssertionError where none does."""
    overloads = overloads_of(getattr(cls, name), name)
    assert overloads, f"{cls.__name__}.{name} tells no signature"
    for parameters, returned in overloads:
        if _fits(cls, parameters[1:], args, kwargs):  # without self
            return returned
    raise AssertionError(f"no overload of {cls.__name__}.{name} takes {args} {kwargs}; it has {overloads}")


def overloads_of(method: Callable[..., Any], name: str) -> list[tuple[list[tuple[str, str, bool]], str]]:
    """[([(parameter, annotation, has a default)], return annotation)] from a docstring of pybind11's."""
    found = re.findall(rf"^(?:\d+\. )?\s*{name}\((.*)\) -> (.*)$", method.__doc__ or "", re.MULTILINE)
    return [
        ([_parameter(text) for text in _split(parameters)], returned.strip())
        for parameters, returned in found
        if not parameters.startswith("*args")
    ]


def _split(parameters: str) -> list[str]:
    parts, depth = [""], 0
    for letter in parameters:
        depth += (letter in "[(<{") - (letter in "])>}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _parameter(text: str) -> tuple[str, str, bool]:
    declared, _, default = text.partition(" = ")
    name, _, annotation = declared.partition(": ")
    return name, annotation.strip(), bool(default)


def _fits(cls: type, parameters: list[tuple[str, str, bool]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    names = [name for name, _, _ in parameters]
    if len(args) > len(names) or set(kwargs) - set(names[len(args) :]):
        return False
    given = dict(zip(names, args, strict=False)) | kwargs
    return all(
        _is_a(cls, given[name], annotation) if name in given else has_default
        for name, annotation, has_default in parameters
    )


def _is_a(cls: type, value: Any, annotation: str) -> bool:
    if annotation == "typing.SupportsInt":
        return hasattr(value, "__int__")
    if annotation == "typing_extensions.Buffer":
        return isinstance(value, bytes | bytearray | memoryview)
    if annotation in ("str", "tuple", "list", "bool"):
        return type(value).__name__ == annotation
    wanted = _class_called(cls, annotation) if re.search("tensorrt|nvinfer1", annotation) else None
    if not isinstance(wanted, type):
        return True
    if wanted is _bindings_of(cls).Dims:
        return isinstance(value, wanted | tuple | list)  # pybind11 converts
    return value is None or issubclass(value._cls if isinstance(value, Spec) else type(value), wanted)
