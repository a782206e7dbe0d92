"""ES modules become one classic script by a rule whose assumptions are checked."""

from pathlib import Path

import pytest
from thresher.analysis.explorer import bundle as module
from thresher.analysis.explorer.bundle import ModuleError, bundle

STATIC = Path(module.__file__).parent / "static"

API = 'export const root = "";\nexport function load(x) {\n  return x;\n}\n'
SHELL = 'import { load } from "./api.js";\nexport function keys() { load(1); }\nkeys();\n'
PAGE = 'import { keys as held } from "./shell.js";\nimport { root, load } from "./api.js";\nheld(load(root));\n'


def test_modules_run_once_each_after_those_that_they_import():
    text = bundle(["shell.js", "page.js"], {"api.js": API, "shell.js": SHELL, "page.js": PAGE})
    places = [text.index(f'modules["{name}"] = ') for name in ("api.js", "shell.js", "page.js")]
    assert places == sorted(places)
    assert text.count('modules["api.js"] = ') == 1


def test_imports_and_exports_are_written_by_the_rule():
    text = bundle(["page.js"], {"api.js": API, "shell.js": SHELL, "page.js": PAGE})
    expected = (
        '"use strict";\n(() => {\nconst modules = {};\n'
        'modules["api.js"] = (() => {\nconst root = "";\nfunction load(x) {\n  return x;\n}\n'
        "return { root, load };\n})();\n"
        'modules["shell.js"] = (() => {\nconst { load } = modules["api.js"];\nfunction keys() { load(1); }\nkeys();\n'
        "return { keys };\n})();\n"
        'modules["page.js"] = (() => {\nconst { keys: held } = modules["shell.js"];\n'
        'const { root, load } = modules["api.js"];\nheld(load(root));\nreturn {  };\n})();\n'
        "})();\n"
    )
    # a module is ordered by its first import
    assert text == expected


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ('import x from "./api.js";', "an import that is not"),
        ('import * as x from "./api.js";', "an import that is not"),
        ('import {\n  load,\n} from "./api.js";', "an import that is not"),
        ('import { load } from "https://elsewhere/api.js";', "an import that is not"),
        ('import { load } from "../api.js";', "an import that is not"),
        ('const a = 1;\nimport { load } from "./api.js";', "an import after other code"),
        ('const x = () => import("./api.js");', "a dynamic import"),
        ("const here = import.meta.url;", "import.meta"),
        ("export default function f() {}", "an export that is no"),
        ("export { f };", "an export that is no"),
        ('export * from "./api.js";', "an export that is no"),
        ("export let x = 1;", "an export that is no"),
        ("await load(1);", "an await outside"),
        ("const x = await load(1);", "an await outside"),
    ],
)
def test_another_form_is_refused_with_its_line(text, form):
    with pytest.raises(ModuleError, match=form) as raised:
        bundle(["page.js"], {"api.js": API, "page.js": text})
    assert "page.js line " in str(raised.value)


def test_an_await_within_a_function_and_the_words_in_comments_stand():
    text = "// import nothing\nasync function f() { const x = await g(); }\nasync function h() {\n  await f();\n}\n"
    assert "  await f();" in bundle(["page.js"], {"page.js": text})


def test_a_circle_and_a_module_that_is_not_there_are_named():
    circle = {"a.js": 'import { b } from "./b.js";', "b.js": 'import { a } from "./a.js";'}
    with pytest.raises(ModuleError, match=r"a\.js imports b\.js imports a\.js"):
        bundle(["a.js"], circle)
    with pytest.raises(ModuleError, match=r"page\.js imports gone\.js, which is not there"):
        bundle(["page.js"], {"page.js": 'import { a } from "./gone.js";'})


def test_every_script_of_the_explorer_has_the_forms_that_the_rule_holds_for():
    sources = {path.name: path.read_text() for path in STATIC.glob("*.js")}
    assert "shell.js" in sources
    for name in sources:
        assert bundle([name], sources).count("modules[") >= 1
