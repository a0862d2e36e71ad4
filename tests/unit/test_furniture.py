"""Page furniture goes, by form and by repetition; headings and the news stay."""

from __future__ import annotations

from collections import Counter

import pytest

from lm_eval_kinject.corpus.furniture import LineTally, Repeated, take_out

NONE = Repeated()


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("related", "Cancer risk:Americans have 40% chance of getting cancer. Who's most at risk?"),
        ("related", "More: Punxsutawney Phil almost always sees his shadow"),
        ("related", "'DYING ON THE STREETS':Homelessness crisis is top issue in Los Angeles mayoral race"),
        ("related", "Don't miss the next rocket launch"),
        ("register", "Make Washington make sense for you: Sign up for our On Politics newsletter."),
        ("register", "Subscribe to The Week Escape your echo chamber. SUBSCRIBE & SAVE"),
        ("register", "Register for free to read on."),
        ("privacy", "We and our partners use cookies to improve your experience."),
        ("privacy", "© 2024 The Paper. All rights reserved."),
        ("privacy", "If you make a purchase by clicking one of the links, we may earn an affiliate fee."),
        ("by-line", "Contributing: Jill Lawless and Brian Melley, The Associated Press"),
        ("by-line", "— Joey Garrison"),
        ("by-line", "–John Fritze and Ledyard King"),
        ("by-line", "She covers breaking news. Reach her at someone@paper.com."),
    ],
)
def test_lines_that_are_furniture_by_their_form(kind: str, line: str) -> None:
    assert take_out("a", f"The news.\n\n{line}\n\nMore news of it.", NONE) == (
        "The news.\n\nMore news of it.",
        Counter({kind: 1}),
    )


@pytest.mark.parametrize(
    "line",
    [
        "– Former Vice President Mike Pence, condemning former President Donald Trump for hosting a dinner.",
        "DAVID MUIR: President Trump, I'll give you two minutes.",
        "Annapolis: State Sen. Paul Corderman filed Monday to run for his District delegate seat.",
        "To get the scoop on the holiday, the paper has turned to the director of the Irish Museum.",
        "Voters have to be a registered party member to participate.",
        "The We Energies Cookie Book has been published for nearly a hundred years.",
        "They mostly don't work for the things that they're advertised for, Dr. See says.",
        "The bill would restrict how apps collect data; its privacy policy is disputed in court.",
        "12 p.m.-1:30 p.m.: Disability Caucus meeting",
        "See https://Example.org/page for the report.",
    ],
)
def test_the_news_stays(line: str) -> None:
    assert take_out("a", line, NONE) == (line, Counter())


def test_an_invitation_to_read_on_goes_from_the_end_of_a_paragraph() -> None:
    assert take_out("a", "Cases rose to 524. Read more here.", NONE) == ("Cases rose to 524.", Counter())


def test_a_line_of_many_articles_goes_but_for_headings_and_its_first_article() -> None:
    menu = "Home\nWorld"
    back = "The law was passed in 2010 after years of debate."
    texts = {name: f"Own text of {name}.\n{menu}\nAlabama\nMontgomery: news of {name}.\n{back}" for name in "abcd"}
    tally = LineTally()
    for name, text in texts.items():
        tally.add(name, text)
    assert len(tally.lines) == len(tally.articles) == 4 * 6
    repeated = tally.repeated(4)
    assert len(repeated.first) == 4  # home, world, alabama, the background
    assert take_out("a", texts["a"], repeated) == (
        f"Own text of a.\nAlabama\nMontgomery: news of a.\n{back}",
        Counter({"repeated": 2}),
    )
    assert take_out("b", texts["b"], repeated) == (
        "Own text of b.\nAlabama\nMontgomery: news of b.",
        Counter({"repeated": 3}),
    )
    assert tally.repeated(5) == NONE
    again = LineTally()
    again.extend(tally.lines, tally.articles)
    assert again.repeated(4) == repeated
