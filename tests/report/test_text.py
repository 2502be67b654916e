"""The summary as text."""

from __future__ import annotations

from made_up import HOSTILE, USER, summary, users
from wares.pipeline import Step
from wares.report.text import as_text


def test_rows_steps_model_and_what_is_recommended() -> None:
    lines = as_text(summary()).splitlines()
    assert lines[1:3] == ["shop in /data/lakes/north/shop", "=" * 30]
    assert "  silver.orders                                  1,469,307   1,465,002     1,336     2,969" in lines
    assert f"  {'together':<44}    1013.4 s" in lines
    assert any(line.startswith("  wide & deep                        0.4355 (0.4212-0.4485)") for line in lines)
    assert "recommended to most users of shop (how many, of 2,469 with a list)" in lines
    assert "      1,204  Fluid milk white only 1 ga" in lines


def test_users_are_there_only_if_they_were_asked_for() -> None:
    assert USER not in as_text(summary())
    shown = as_text(summary(users=users(), shows_users=True))
    assert f"user {USER} of shop: 27 orders from 2017-01-22 to 2017-12-23\n  bought most     14 x  {HOSTILE}\n" in shown
    assert "  recommended    0.440  Dry dog food 16.3 lb: bought 4 times, every 23 days\n" in shown
    assert "recommended to most users" not in shown


def test_what_the_model_says_is_left_out_where_a_step_failed() -> None:
    steps = (Step("bronze", "done", 3.0), Step("silver", "failed", 1.0), Step("gold", "left out"))
    found = as_text(summary(steps=steps, unread=("gold.sales_daily",)))
    assert f"  {'silver':<44}       1.0 s  failed\n" in found
    assert "wide & deep" not in found
    assert "recommended" not in found
    assert found.endswith("warning: could not be read: gold.sales_daily")
