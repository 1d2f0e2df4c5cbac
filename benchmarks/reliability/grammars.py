"""Words and sentences of the small grammars that the product reads: texts nearly right are made of them."""

from __future__ import annotations

from .spoiling import of_text

EXPRESSION = of_text(
    "target", "difference", "low", "speedup", "min(", "max(", "len(", "abs(", " and ", " or ", "not ", "==",
    "<=", " in ", " is ", "**", "//", "lambda x: ", "f'{", "benchmark", "latency", "[0]", "[-1]",
    "['p50_ms']", "1j", "...", ":=", "await ", "True", "0x" + "f" * 900, "1e999", "(" * 90, ")" * 90,
    "-" * 300,
)  # fmt: skip
TEMPLATE = of_text(
    "{{", "}}", "{%", "%}", "for ", "in ", "range(", "if ", "else", "endfor", "endif", "macro ", "m()", "**",
    "* 10", "|join", "|length", "|sort", "|groupby('a')", "|xmlattr", "|indent(9)", "|center(9)", "|batch(2)",
    "|attr('x')", "|map('upper')", "|items", "|sum", "|tojson", ".x", "[0]", "['text']", "self", "loop.index",
    "set a = ", "include 'x'", "import 'x'", "%d", ".format(", "{#", "#}", "text", "list", "label", "(" * 300,
    "99999999999", "'a'", "cycler(", "namespace(", "raw", "endraw", "call", "filter upper",
)  # fmt: skip
YAML = of_text(
    ": ", "- ", "? ", "&a ", "*a", "<<: ", "!!int ", "!!float ", "!!bool ", "!!timestamp ", "!!binary ",
    "!!set ", "!!omap ", "!!python/object:os.system ", "|\n", ">\n", "{", "}", "[", "]", "~", "1:1:1",
    "0x" + "f" * 5000, ".inf", "---\n", "%YAML 9.9\n", "epsilon", "columns", "target", "drop", "alphas", "\t",
    "2026-99-99",
)  # fmt: skip
TOML = of_text(
    " = ", "[", "]", "[[", "]]", ".", '"', '"""', "'''", "0x" + "f" * 5000, "inf", "nan", "1979-05-27",
    "true", "epsilon", "columns", "target", "drop", "alphas", "{ a = 1 }", "a.b.c = 1\n", "\n", "07:32:00",
    "\\u0000",
)  # fmt: skip
OPTIONS = of_text(
    "\n--drop\n", "\n--scale\n", "\n--target\n", "\n--columns\n", "\n--weights\n", "\n--pick\n",
    "\n--epsilon\n", "\n--alphas\n", "\n--layers\n", "\n--format\n", "\n--max-memory\n", "\n--extract\n",
    "\n--num-threads\n", "\n--prompt-template\n", "\n--seed\n", "\n--id\n", "\n--compare\n",
    "\n--objective\n", "select\n", "prune\n", "3,7", "encoder:3", "4.attention", "4:0.5", "a=b", "=", ",",
    ":", ".", "a{99999999999}", "0x10", "1_0",
)  # fmt: skip
EXPRESSIONS = (
    "target.difference.low < 0", "speedup.low < 1.1 or size_ratio > 0.9",
    "min(benchmark.latency.speedup.low) < 1",
    "max(benchmark.latency.original.p50_ms) - 1 > 2 * len(selection.drop)", "not (target.metric == 'f1')",
    "abs(id.gain) / 2 >= 0.1 and dropped != 3 and 1 < dropped <= 4", "run.config['seed'] == 0",
)  # fmt: skip
LINES_OF_OPTIONS = (
    "prune\n--model\nx\n--drop\n3,7\n-o\nout",
    "prune\n--model\nx\n--drop\nencoder:3,decoder:5\n--scale\nencoder:4:0.5",
    "select\n--model\nx\n--id\na\n--target\na=b\n--target\nc=d\n--weights\na=1,c=2\n--objective\nweights",
    "select\n--model\nx\n--columns\ntext=review,label=stars\n--pick\n2\n--drop\n4.attention,5.mlp",
    "intervene\n--model\nx\n--layers\n1,2\n--alphas\n0,0.5,1",
    "run\n--model\nx\n--extract\n(\\d+)\n--max-new-tokens\n9",
    "select\n--model\nx\n--compare\ntale,random\n--device\nauto\n--max-memory\n8GB\n--seed\n3",
    "run\n--model\nx\n--prompt-template\n{{ a }}\n--seed\n3",
)  # fmt: skip
TEMPLATES = (
    "Question: {{ text }}\nAnswer:",
    "{% for x in list %}{{ loop.index }}. {{ x|upper }}\n{% endfor %}{{ label * 2 }}",
    "{% if text %}{{ text|length }}{% else %}{{ label|round }}{% endif %}",
    "{% set a = list|join(', ') %}{{ a }}",
    "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(text) }}{{ '%s'|format(label) }}{{ range(3)|list }}",
)  # fmt: skip
CSV = of_text('"', '""', ",", "\t", "\r", "\n", "\r\n", "text", "label", "a" * 140_000)
