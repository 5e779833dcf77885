"""The rules of the house, each a function from one module to what breaks it there."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "distqat"

FOUNDATION = {
    *("errors", "ids", "config", "sections", "data_sections", "quant_sections", "settings_file", "aio"),
    *("wire_sections", "telemetry", "timeline", "times", "events", "event_log", "compiled", "beats"),
}
LAYERS = {
    **dict.fromkeys(FOUNDATION, 0),
    "wire": 1,
    "rpc": 2,
    "model": 2,
    "data": 3,
    "discovery": 4,
    "pipeline": 4,
    "averaging": 4,
    "roles": 5,
    "peer": 6,
    "cli": 7,
}
"""Rooms by floor; a room imports from lower floors only, and so never from its neighbours."""

WITHOUT_TORCH = ("cli/", "peer/", "discovery/", "rpc/", "roles/monitor.py", "roles/client.py", "roles/plan/")
"""The control plane, which must start in well under a second."""

MAY_CATCH_ALL = {("aio.py", "supervise"), ("rpc/handlers.py", "_outcome"), ("compiled.py", "compile")}
"""The two supervisors, and one that tries again without its files: nowhere else may an unknown error be swallowed."""

MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60
MAX_CONSTRUCTOR_ARGUMENTS = 7

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One file: its path below the package, and its source."""

    path: str
    source: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @property
    def room(self) -> str:
        """The folder, or the module's own name at the top."""
        return self.path.split("/")[0].removesuffix(".py")

    @property
    def name(self) -> str:
        """As it is imported."""
        parts = [PACKAGE, *self.path.removesuffix(".py").split("/")]
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


Rule = Callable[[Module], list[str]]


def modules() -> list[Module]:
    """Every module that people write."""
    files = sorted((ROOT / PACKAGE).rglob("*.py"))
    found = [Module(file.relative_to(ROOT / PACKAGE).as_posix(), file.read_text()) for file in files]
    return [module for module in found if module.room != "pb"]


def docstring(module: Module) -> str:
    """The module's own; empty if it has none."""
    return ast.get_docstring(module.tree) or ""


def imports(module: Module) -> Iterator[tuple[int, str]]:
    """Line and full name of all that is imported, wherever in the module; names out of a package one by one."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.name.split(".")
                keep = len(above) - node.level + (1 if module.path.endswith("__init__.py") else 0)
                base = ".".join([*above[:keep], *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def _is_of(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def import_direction(module: Module) -> list[str]:
    """Imports point down only."""
    faults = []
    if module.path == "__init__.py":
        return [f"{line}: the package itself imports {name}" for line, name in imports(module) if PACKAGE in name]
    for line, name in imports(module):
        parts = name.split(".")
        if parts[0] != PACKAGE or parts[1:2] in (["pb"], ["__version__"]):
            continue
        room = parts[1] if len(parts) > 1 else ""
        if room == module.room or {room, module.room} <= FOUNDATION:
            continue
        if room not in LAYERS or module.room not in LAYERS:
            faults.append(f"{line}: {module.room} imports {name}, which has no place in the house")
        elif LAYERS[room] >= LAYERS[module.room]:
            faults.append(f"{line}: {module.room} imports {name}")
    return faults


def grpc_only_in_rpc(module: Module) -> list[str]:
    """`grpc` and what comes with it is known to rpc/ only."""
    if module.room == "rpc":
        return []
    foreign = ("grpc", "grpc_health", "grpc_reflection", "grpc_status")
    return [f"{line}: imports {name}" for line, name in imports(module) if any(_is_of(name, own) for own in foreign)]


def pb_only_in_messages(module: Module) -> list[str]:
    """Generated code is known to rpc/ and to files named messages.py only."""
    if module.room == "rpc" or module.path.endswith("/messages.py"):
        return []
    return [f"{line}: imports {name}" for line, name in imports(module) if _is_of(name, f"{PACKAGE}.pb")]


def no_torch_in_the_control_plane(module: Module) -> list[str]:
    """Not even within a function."""
    if not module.path.startswith(WITHOUT_TORCH):
        return []
    return [f"{line}: imports {name}" for line, name in imports(module) if _is_of(name, "torch")]


def is_pure(module: Module) -> list[str]:
    """No `async`, no clock, no event loop, no randomness of its own. Applied to the pure files only."""
    faults = []
    banned = ("time", "datetime", "asyncio", "secrets", "uuid", "threading", "socket", "grpc")
    for line, name in imports(module):
        is_global_random = _is_of(name, "random") and name not in ("random", "random.Random")
        if is_global_random or any(_is_of(name, own) for own in banned):
            faults.append(f"{line}: imports {name}")
    handed_in = _where_random_is_handed_in(module.tree)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            faults.append(f"{node.lineno}: async")
        elif isinstance(node, ast.Call) and node not in handed_in:
            faults += [
                f"{node.lineno}: calls {name}" for name in [ast.unparse(node.func)] if _draws_globally(name, node)
            ]
    return faults


def _where_random_is_handed_in(tree: ast.Module) -> set[ast.AST]:
    """All that lies in functions with an argument named `random`: there it is a generator, not the module."""
    functions = [node for node in ast.walk(tree) if isinstance(node, Function)]
    return {
        inner
        for function in functions
        if "random" in {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)}
        for statement in function.body
        for inner in ast.walk(statement)
    }


def _draws_globally(name: str, call: ast.Call) -> bool:
    owner, _, function = name.rpartition(".")
    if owner == "random":
        return function != "Random" or not call.args
    if owner in ("np.random", "numpy.random"):
        return function not in ("PCG64", "SeedSequence", "Generator", "default_rng") or not call.args
    if owner == "torch" and function in ("rand", "randn", "randint", "randperm", "normal", "bernoulli"):
        return not any(keyword.arg == "generator" for keyword in call.keywords)
    return name in ("os.urandom", "torch.manual_seed", "torch.seed")


def no_bare_tasks(module: Module) -> list[str]:
    """Every task belongs to a TaskGroup."""
    faults = [
        f"{line}: imports {name}"
        for line, name in imports(module)
        if name in ("asyncio.create_task", "asyncio.ensure_future")
    ]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            owner, _, function = ast.unparse(node.func).rpartition(".")
            is_loop = owner == "asyncio" or owner.endswith(("loop", "loop()"))
            if (function == "create_task" and is_loop) or function in ("ensure_future", "run_coroutine_threadsafe"):
                faults.append(f"{node.lineno}: {owner}.{function}")
    return faults


def no_catch_all(module: Module) -> list[str]:
    """Unknown errors are caught by the supervisors only; elsewhere a handler for all of them raises again."""
    faults = []
    for function, node in _with_function(module.tree):
        if isinstance(node, ast.ExceptHandler) and _catches_all(node.type) and not isinstance(node.body[-1], ast.Raise):
            if (module.path, function) not in MAY_CATCH_ALL:
                faults.append(f"{node.lineno}: catches everything in {function or 'the module'}")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("suppress", "contextlib.suppress"):
            faults += [f"{node.lineno}: suppresses everything" for kind in node.args if _catches_all(kind)]
    return faults


def _catches_all(kind: ast.expr | None) -> bool:
    if kind is None:
        return True
    kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return any(ast.unparse(one).removeprefix("builtins.") in ("Exception", "BaseException") for one in kinds)


def _with_function(node: ast.AST, function: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Every node with the name of the innermost function around it."""
    for child in ast.iter_child_nodes(node):
        yield function, child
        yield from _with_function(child, child.name if isinstance(child, Function) else function)


def no_print(module: Module) -> list[str]:
    """Daemons log; only commands print."""
    if module.room == "cli":
        return []
    return [f"{line}: print" for line in _calls(module, ("print",))]


def nothing_received_is_run(module: Module) -> list[str]:
    """No pickle, no torch.load, no eval."""
    banned = ("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "torch.load")
    faults = [f"{line}: imports {name}" for line, name in imports(module) if any(_is_of(name, own) for own in banned)]
    calls = ("eval", "exec", "torch.load", "torch.save", "yaml.unsafe_load", "yaml.full_load")
    return faults + [f"{line}: runs code" for line in _calls(module, calls)]


def _calls(module: Module, names: tuple[str, ...]) -> list[int]:
    """Lines on which one of these is called."""
    calls = (node for node in ast.walk(module.tree) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if ast.unparse(call.func) in names]


def sizes(module: Module) -> list[str]:
    """Files, functions and constructors that fit into a head."""
    faults = []
    lines = module.source.count("\n")
    if lines > MAX_FILE_LINES:
        faults.append(f"1: {lines} lines")
    for node in ast.walk(module.tree):
        if isinstance(node, Function):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                faults.append(f"{node.lineno}: {node.name} has {length} lines")
            arguments = len(node.args.posonlyargs) + len(node.args.args) + len(node.args.kwonlyargs) - 1
            if node.name == "__init__" and arguments > MAX_CONSTRUCTOR_ARGUMENTS:
                faults.append(f"{node.lineno}: a constructor with {arguments} arguments")
    return faults


RULES: tuple[Rule, ...] = (
    import_direction,
    grpc_only_in_rpc,
    pb_only_in_messages,
    no_torch_in_the_control_plane,
    no_bare_tasks,
    no_catch_all,
    no_print,
    nothing_received_is_run,
    sizes,
)
"""What holds for every module."""
