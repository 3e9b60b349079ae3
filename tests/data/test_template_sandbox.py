"""A stranger's template: rendered as transformers renders it, and stopped when it goes on or grows."""

from __future__ import annotations

import pytest
from chat_templates import BRACKETS, CHATML, MARKED

from loratlas.data.chat.template_sandbox import LARGEST_SOURCE, Template, TemplateFailure

GROWS = "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(60) %}"
HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "slow loops": "{% for a in range(99999) %}{% set x = range(99999) | list %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "endless macros": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "output": "{% for a in range(99999) %}{{ 'x' * 10000 }}{% endfor %}",
    "a constant": "{{ 'x' * 10**10 }}",
    "doubling by +": GROWS + "{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
    "doubling by ~": GROWS + "{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "a list of itself": GROWS + "{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
    "squares": "{% set n = namespace(s=3) %}{% for i in range(60) %}{% set n.s = n.s * n.s %}{% endfor %}",
    "a power": "{{ 10 ** (10 ** 9) }}",
    "center": "{{ 'x' | center(1000000000) }}",
    "ljust": "{{ 'x'.ljust(1000000000) }}",
    "join": "{{ range(99999) | list | join('x' * 100000) }}",
    "a method join": "{{ ('x' * 100000).join(range(99999) | map('string')) }}",
    "replace": "{{ ('x' * 1000000).replace('x', 'y' * 1000) }}",
    "a replace filter": "{{ ('x' * 1000000) | replace('x', 'y' * 1000) }}",
    "indent": "{{ ('\\n' * 1000000) | indent(1000000) }}",
    "batch": "{{ [1] | batch(1000000000, 'x') | list }}",
    "a format": "{{ '%1000000000d' | format(1) }}",
    "a format of a text": "{{ '%1000000000d' % 1 }}",
    "a format method": "{{ '{:1000000000}'.format(1) }}",
    "a width handed over": "{{ '{:{}}'.format(1, 1000000000) }}",
    "indented JSON": "{{ [1] | tojson(indent=1000000000) }}",
    "a date": "{{ strftime_now('%1000000000d') }}",
    "inner things": "{{ ''.__class__.__mro__ }}",
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "syntax": "{% for %}",
    "length": "x" * (LARGEST_SOURCE + 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_goes_on_or_grows_is_stopped(name):
    with pytest.raises(TemplateFailure):
        Template(HOSTILE[name]).render([])


def test_a_failure_names_its_line_without_what_a_terminal_obeys():
    with pytest.raises(TemplateFailure) as caught:
        Template("one\n{{ raise_exception('\x1b[31mred') }}").render([])
    assert str(caught.value) == r"\x1b[31mred; line 2 of the template: {{ raise_exception('\x1b[31mred') }}"


@pytest.mark.parametrize("source", [CHATML, MARKED, BRACKETS])
def test_it_writes_what_transformers_writes(source):
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": "user", "content": "%20231231 {1234567} a"}, {"role": "assistant", "content": "b"}]
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    wanted, marks = render_jinja_template(
        conversations=[messages], chat_template=source, return_assistant_tokens_mask=True, **names
    )
    assert Template(source).render_marked(messages, **names) == (wanted[0], marks[0])
    assert Template(source).marks_answers == (source is MARKED)


def test_large_numbers_of_rows_are_data():
    call = {"role": "assistant", "content": "", "calls": [{"at": 1700000000, "to": 10**15}]}
    template = Template(
        "{% macro put(v) %}{{ v | tojson }}{% endmacro %}{% for m in messages %}"
        "{% for c in m.calls %}{% for k, v in c.items() %}{{ k }}={{ put(v) }};{% endfor %}{% endfor %}{% endfor %}"
    )
    assert template.render([call]) == "at=1700000000;to=1000000000000000;"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("loops", "1,000,000 rounds of its loops"),
        ("slow loops", "more than 0.7 s"),
        ("output", "writes more than 64,000,000 characters"),
        ("ljust", "a width or count of 1000000000"),
        ("center", "a width or count of 1000000000"),
        ("a constant", "something of 10,000,000,000"),
        ("a list of itself", "characters or items"),
        ("a format method", "a width of more than 99,999"),
    ],
)
def test_the_bound_that_was_met_is_named(monkeypatch, name, words):
    if name == "loops":  # counted, however slow the processor is
        monkeypatch.setattr("loratlas.data.chat.jinja_bounds._SECONDS", 60)
    with pytest.raises(TemplateFailure, match=words):
        Template(HOSTILE[name]).render([])
