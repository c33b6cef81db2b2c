"""Checks calls against signatures, and overrides against the overridden methods."""

import ast

from contract.trees import Function


def override_problem(ours: Function, theirs: Function) -> str | None:
    """What callers may pass to the base method but not to the override, or ``None``."""
    mine, base = ours.args, theirs.args
    names = [a.arg for a in mine.posonlyargs + mine.args]
    known = {*names, *(a.arg for a in mine.kwonlyargs)}
    positional = [a.arg for a in base.posonlyargs + base.args]
    taken = {*positional, *(a.arg for a in base.kwonlyargs)}
    if not mine.kwarg:
        positional_only = {a.arg for a in base.posonlyargs} | set(positional[:1])
        if refused := taken - known - positional_only:
            return f"the override does not take {', '.join(sorted(refused))}"
        if base.kwarg:
            return f"the override does not take **{base.kwarg.arg}"
    if not mine.vararg and len(positional) > len(names):
        more = ", ".join(positional[len(names) :])
        return f"the override does not take {more} as positional arguments"
    if asked := _required(mine) - taken - set(names[: len(positional)]):
        return f"the override requires {', '.join(sorted(asked))}"
    return None


def call_problem(call: ast.Call, function: Function, bound: bool) -> str | None:
    """What is wrong with the arguments of a call, or ``None``.

    Args:
        call: The call; one with ``*`` or ``**`` is not checked.
        function: The function that is called.
        bound: Whether Python passes the first parameter (``self`` or ``cls``).
    """
    if any(isinstance(a, ast.Starred) for a in call.args):
        return None
    if any(keyword.arg is None for keyword in call.keywords):
        return None
    arguments = function.args
    places = [a.arg for a in arguments.posonlyargs + arguments.args][bound:]
    known = {*places, *(a.arg for a in arguments.kwonlyargs)}
    given = {keyword.arg or "" for keyword in call.keywords}
    if len(call.args) > len(places) and not arguments.vararg:
        return f"it takes {len(places)} positional arguments, not {len(call.args)}"
    if not arguments.kwarg and (unknown := given - known):
        return f"it does not take {', '.join(sorted(unknown))}"
    lacking = (_required(arguments) & known) - given - set(places[: len(call.args)])
    return f"it requires {', '.join(sorted(lacking))}" if lacking else None


def _required(arguments: ast.arguments) -> set[str]:
    places = [a.arg for a in arguments.posonlyargs + arguments.args]
    required = set(places[: len(places) - len(arguments.defaults)])
    defaults = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return required | {a.arg for a, default in defaults if default is None}
