import pytest

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.sharding import place
from gpt_pjit.partition import lint
from gpt_pjit.partition.lint import is_catch_all
from tests.partition.mistakes import MISTAKES, ROWS, SIZES, tree

EVERY = pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)


def test_the_table_of_the_gpt_has_no_findings():
    assert lint(ROWS, tree(), SIZES) == []


def test_two_mistakes_of_each_kind_are_planted():
    kinds = [mistake.kind for mistake in MISTAKES]
    assert len(MISTAKES) > 20
    assert min(map(kinds.count, kinds)) >= 2


@EVERY
def test_a_mistake_is_found_with_parameter_rule_and_remedy(mistake):
    findings = lint(mistake.rules, mistake.params, mistake.sizes)
    of_kind = [str(finding) for finding in findings if finding.kind == mistake.kind]
    assert any(all(words in text for words in mistake.says) for text in of_kind), findings


@EVERY
def test_training_refuses_what_lint_calls_an_error(mistake):
    findings = lint(mistake.rules, mistake.params, mistake.sizes)
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        with pytest.raises(ConfigError) as error:
            place(mistake.rules, mistake.params, "zero", mistake.sizes)
        assert list(error.value.problems) == errors
    else:
        place(mistake.rules, mistake.params, "zero", mistake.sizes)


@EVERY
def test_what_the_usual_idiom_does_instead(mistake):
    if mistake.shard is None:
        with pytest.raises(Exception, match=r".") as error:
            mistake.idiom_shard()
        assert mistake.parameter not in str(error.value)
    else:
        assert mistake.idiom_shard() == mistake.shard


@pytest.mark.parametrize(
    ("regex", "caught"),
    [
        (".*", True),
        ("blocks/.*", True),
        ("blocks/mlp/up/.*", True),
        (r"blocks/\w+/\w+/\w+", True),
        (".*/kernel", False),
        ("blocks/mlp/up/kernel", False),
        ("blocks/.*/(kernel|bias)", False),
    ],
)
def test_a_catch_all_matches_any_other_name(regex, caught):
    assert is_catch_all(regex, "blocks/mlp/up/kernel") == caught
