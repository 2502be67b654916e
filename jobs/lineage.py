"""Shows what a column is made of, or what is made of it; or exports all recorded lineage as OpenLineage run events."""

import json
from argparse import ArgumentParser, ArgumentTypeError

from wares.cli import Job, main
from wares.lake.lineage_query import as_json, as_tree, ask
from wares.lake.openlineage import export


def _column(text: str) -> str:
    if text.count(".") < 2:
        raise ArgumentTypeError(f"'{text}' names no column of a table: write it as layer.table.column")
    return text


def _depth(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"'{text}' is no number of steps: write 1 or more")
    return int(text)


def options(parser: ArgumentParser) -> None:
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--column", type=_column, metavar="TABLE.COLUMN", help="the column, such as gold.user_profiles.spend_90d")
    task.add_argument("--openlineage", metavar="FILE|URL", help="export to a file, one JSON event a line, or to a service")
    direction = parser.add_mutually_exclusive_group()
    direction.add_argument("--upstream", action="store_true", default=True, help="what the column is made of (default)")
    direction.add_argument("--downstream", dest="upstream", action="store_false", help="what is made of the column")
    parser.add_argument("--indirect", action="store_true", help="with what decides which rows there are")
    parser.add_argument("--depth", type=_depth, metavar="N", help="follow at most N steps from the column (default: all)")
    parser.add_argument("--json", action="store_true", help="the answer as JSON, and nothing beside it")


def run(job: Job) -> None:
    with job.store() as store:
        if job.options.openlineage:
            job.report.say(f"  {export(store, job.options.openlineage):,} events exported")
        else:
            asked = job.options
            answer = ask(store, asked.column, asked.upstream, asked.indirect, asked.depth)
            print(json.dumps(as_json(answer), indent=2) if job.options.json else as_tree(answer))


if __name__ == "__main__":
    main(run, __doc__, options)
