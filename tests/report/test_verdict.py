import math

from flowopt.report.verdict import STRESSED, Figures, Outcome, Verdict


def figures(power: float, regime: str = "normal", output: str = "output") -> Figures:
    return Figures(output, "traced", 0.0, 0.0, 0.5, None, power=power, regime=regime)


def test_power_is_that_of_the_worst_output_in_its_best_case() -> None:
    found = (figures(1e-6), figures(1e-4), figures(1e-3, output="other"))
    verdict = Verdict(Outcome.EQUIVALENT, figures=found)
    assert verdict.power_of_outputs == {"output": 1e-6, "other": 1e-3}
    assert verdict.power == 1e-3


def test_weights_that_are_nobodys_do_not_count() -> None:
    found = (figures(1e-4), figures(1e-9, f"{STRESSED} normal"))
    assert Verdict(Outcome.EQUIVALENT, figures=found).power == 1e-4
    assert Verdict(Outcome.EQUIVALENT, figures=found[1:]).power == 1e-9


def test_an_output_that_no_case_could_see_is_infinitely_weak() -> None:
    assert math.isinf(Verdict(Outcome.INCONCLUSIVE, figures=(figures(math.inf),)).power)
    assert Verdict(Outcome.INCONCLUSIVE).power == 0.0


def test_ordinary_numbers_count_before_others() -> None:
    found = (figures(1e-4), figures(1e-9, "huge"))
    assert Verdict(Outcome.EQUIVALENT, figures=found).power == 1e-4
    assert Verdict(Outcome.EQUIVALENT, figures=found[1:]).power == 1e-9


def test_a_case_of_zeros_tells_nothing() -> None:
    found = (figures(0.0), figures(1e-6), figures(1e-3, "huge"))
    assert Verdict(Outcome.EQUIVALENT, figures=found).power == 1e-6
