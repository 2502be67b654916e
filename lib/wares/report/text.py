"""The suite's summary as text: rows, seconds, how good the models are, and what is recommended."""

from __future__ import annotations

from wares.model.evaluation import table
from wares.report.summary import Popular, Product, Summary, User

TABLE_ROW = "  {:<44}{:>12}{:>12}{:>10}{:>10}"


def as_text(summary: Summary) -> str:
    """The summary as a person reads it at the end of the run. What the model says is left out where a step was not done."""
    title = f"{', '.join(summary.sources)} in {summary.lake}"
    parts = [f"{title}\n{'=' * len(title)}", _rows(summary), _seconds(summary)]
    if not summary.undone:
        for source in summary.sources:
            models = [
                f"model wares_{source}@{model.version}, on the test days\n{table(model.report)}"
                for model in summary.models
                if model.source == source
            ]
            popular = [_popular(each) for each in summary.popular if each.source == source and not summary.shows_users]
            users = "\n".join(_user(each) for each in summary.users if each.source == source)
            parts += [part for part in (*models, *popular, users) if part]
    if summary.unread:
        parts.append(f"warning: could not be read: {', '.join(summary.unread)}")
    return "\n" + "\n\n".join(parts)


def _rows(summary: Summary) -> str:
    heading = TABLE_ROW.format("", "rows in", "kept", "rejected", "merged").replace("  ", "rows", 1)
    lines = [
        TABLE_ROW.format(rows.table, *(f"{count:,}" for count in (rows.rows_in, rows.kept, rows.rejected, rows.merged)))
        for rows in summary.rows
    ]
    return "\n".join([heading, *lines])


def _seconds(summary: Summary) -> str:
    steps = summary.steps
    lines = [f"  {step.job:<44}{step.seconds:>10.1f} s{'' if step.status == 'done' else f'  {step.status}'}" for step in steps]
    return "\n".join(["steps", *lines, f"  {'together':<44}{sum(step.seconds for step in steps):>10.1f} s"])


def _popular(popular: Popular) -> str:
    """What is recommended to most users, of products that are in the lists of enough of them to tell of no single one."""
    if not popular.products:
        return ""
    lists = f", of {popular.users:,} with a list" if popular.users else ""
    lines = [f"  {users:>9,}  {name}" for name, users in popular.products]
    return "\n".join([f"recommended to most users of {popular.source} (how many{lists})", *lines])


def _user(user: User) -> str:
    heading = f"user {user.user_id} of {user.source}: {user.orders:,} orders from {user.first} to {user.last}"
    bought = _listed("bought most", [f"{product.value:>4} x  {product.name}" for product in user.bought])
    recommended = _listed("recommended", [_recommended(product) for product in user.recommended])
    return "\n".join([heading, *bought, *recommended])


def _recommended(product: Product) -> str:
    return f"{product.value:>6.3f}  {product.name}: {product.why}"


def _listed(title: str, products: list[str]) -> list[str]:
    return [f"  {title if place == 0 else '':<14}{product}" for place, product in enumerate(products)]
