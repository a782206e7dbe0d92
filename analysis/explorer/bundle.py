"""Hand-written ES modules as one classic script, which a page opened from a folder may run; modules it may not.

The rule. Each module becomes a function that is called once, after those that it imports, and gives what it exports:

    import { a, b as c } from "./x.js";    ->    const { a, b: c } = modules["x.js"];
    export function f() {}                 ->    function f() {}    and f among what the module's function gives

It holds for modules of these forms alone, which is checked: imports on one line each, before any other code, of names
from a file beside; `export` at a line's start before `function`, `async function`, `const` or `class` and a name; no
default export, no `export { ... }` or `export *`, no dynamic import, no `import.meta`, no `await` outside a function,
no circle of imports.
"""

import re
from collections.abc import Mapping, Sequence

_IMPORT = re.compile(r'import \{ ([\w$]+(?: as [\w$]+)?(?:, [\w$]+(?: as [\w$]+)?)*) \} from "\./([\w.-]+\.js)";\s*')
_EXPORT = re.compile(r"export (?=(?:async function|function|const|class) ([\w$]+))")
_REFUSED = (
    (re.compile(r"\s*import\b(?!\s*[:=,)])"), 'an import that is not of the form `import { a } from "./x.js";`'),
    (re.compile(r".*\bimport\s*\("), "a dynamic import"),
    (re.compile(r".*\bimport\.meta\b"), "import.meta"),
    (re.compile(r"\s*export\b(?!\s*[:=,)])"), "an export that is no function, const or class with a name"),
    (re.compile(r"(?!.*\basync\b).*\bawait\b(?<=^await)|(?:const|let|var) .*= await\b"), "an await outside a function"),
)
_COMMENT = re.compile(r"\s*(//|/\*|\*)")


class ModuleError(ValueError):
    """A module has a form that the rule does not hold for."""


def bundle(entries: Sequence[str], sources: Mapping[str, str]) -> str:
    """One classic script that does what a page's modules do, each of them run once.

    Parameters
    ----------
    entries
        Names of the modules that the page loads, in order.
    sources
        Their text, and that of every module they import, by name.

    Raises
    ------
    ModuleError
        Naming the module, the line and the form.
    """
    order: list[str] = []
    for entry in entries:
        _order(entry, sources, order, [])
    parts = [f"modules[{_quoted(name)}] = (() => {{\n{_body(name, sources[name])}}})();\n" for name in order]
    return '"use strict";\n(() => {\nconst modules = {};\n' + "".join(parts) + "})();\n"


def _order(name: str, sources: Mapping[str, str], order: list[str], above: list[str]) -> None:
    """Append a module after those that it imports."""
    if name in order:
        return
    if name in above:
        raise ModuleError(f"{' imports '.join([*above[above.index(name) :], name])}: a circle of imports.")
    if name not in sources:
        raise ModuleError(f"{above[-1] if above else 'a page'} imports {name}, which is not there.")
    for line in sources[name].splitlines():
        found = _IMPORT.fullmatch(line)
        if found:
            _order(found[2], sources, order, [*above, name])
    order.append(name)


def _body(name: str, text: str) -> str:
    """The inside of a module's function."""
    lines, exported, has_begun = [], [], False
    for number, line in enumerate(text.splitlines(), 1):
        imported, export = _IMPORT.fullmatch(line), _EXPORT.match(line)
        if imported:
            if has_begun:
                raise ModuleError(f"{name} line {number}: an import after other code.")
            names = imported[1].replace(" as ", ": ")
            line = f"const {{ {names} }} = modules[{_quoted(imported[2])}];"
        elif export:
            exported.append(export[1])
            line = _EXPORT.sub("", line, count=1)
        elif not _COMMENT.match(line):
            for form, words in _REFUSED:
                if form.match(line):
                    raise ModuleError(f"{name} line {number}: {words} ({line.strip()[:60]}).")
        has_begun = has_begun or (bool(line.strip()) and not imported and not _COMMENT.match(line))
        lines.append(line)
    return "\n".join([*lines, f"return {{ {', '.join(exported)} }};", ""])


def _quoted(name: str) -> str:
    return f'"{name}"'
