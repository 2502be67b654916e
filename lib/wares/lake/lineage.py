"""Column lineage, read from Spark's analysed plan: for each output column, the table columns that it was made of.

*Direct*: a value flows, or a condition chooses the value (CASE, IF, coalesce, aggregate FILTER). *Indirect*: it decides
which rows or groups there are (WHERE, JOIN, GROUP BY, ORDER BY, window, DISTINCT). The names of the kinds are those of
OpenLineage's column lineage facet.

The trace fails closed: a leaf counts only if it is a relation right under an alias that holds this run's token, and a
plan node or an expression whose flow is not known here is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import DataFrame

from wares.errors import LineageError

Node = dict[str, Any]
Paths = frozenset[frozenset[str]]
"""The ways by which one source column reaches an output column: for each way, the kinds of step on it."""


@dataclass(frozen=True)
class Ref:
    """A column of a table."""

    table: str
    column: str

    def __str__(self) -> str:
        return f"{self.table}.{self.column}"


Flow = dict[Ref, Paths]

IDENTITY: Paths = frozenset({frozenset()})
AGGREGATION, TRANSFORMATION, CONDITIONAL = "AGGREGATION", "TRANSFORMATION", "CONDITIONAL"
FILTER, JOIN, GROUP_BY, SORT, WINDOW = "FILTER", "JOIN", "GROUP_BY", "SORT", "WINDOW"


@dataclass(frozen=True)
class Lineage:
    """What a frame is made of.

    Args:
        direct: For each output column, the columns whose values flow into it, and by which ways.
        indirect: The columns that decide which rows there are, and how.
    """

    direct: dict[str, Flow]
    indirect: Flow


@dataclass
class _Traced:
    """A plan node: its output attributes in order, each with its flow, and what decided its rows."""

    output: list[int]
    flows: dict[int, Flow]
    indirect: Flow = field(default_factory=dict)


def relation_alias(table: str, version: int | str, token: str) -> str:
    """The alias under which the store hands a relation to `build`; only such leaves are believed."""
    return f"{table}@{version}#{token}"


def trace(frame: DataFrame, token: str) -> Lineage:
    """The lineage of `frame`, whose leaves the store has aliased with `token`.

    Raises:
        LineageError: A part of the plan has an origin that cannot be told.
    """
    plan = json.loads(frame._jdf.queryExecution().analyzed().toJSON())
    traced = _Tracer(token).plan(plan)
    return Lineage(
        {name: traced.flows[attribute] for name, attribute in zip(frame.columns, traced.output, strict=True)}, traced.indirect
    )


def _merge(flows: Iterable[Flow]) -> Flow:
    merged: Flow = {}
    for flow in flows:
        for ref, paths in flow.items():
            merged[ref] = merged.get(ref, frozenset()) | paths
    return merged


def _through(flow: Flow, kind: str) -> Flow:
    """The same flow after one more step."""
    return {ref: frozenset(path | {kind} for path in paths) for ref, paths in flow.items()}


def _class(node: Node) -> str:
    return node["class"].rpartition(".")[2]


def _id(node: Node) -> int:
    return node["exprId"]["id"]


class _Tree:
    """A node with its children, rebuilt from the pre-order list in which Spark writes trees."""

    def __init__(self, nodes: list[Node]) -> None:
        self.rest = iter(nodes)
        self.root = self._next()

    def _next(self) -> Node:
        node = next(self.rest)
        node["nodes"] = [self._next() for _ in range(node["num-children"])]
        return node


def _expression(nodes: list[Node]) -> Node:
    return _Tree(nodes).root


PASSING = {
    "SubqueryAlias", "View", "GlobalLimit", "LocalLimit", "Offset", "Tail", "Sample", "Repartition", "RepartitionByExpression",
    "RebalancePartitions", "ResolvedHint", "UnresolvedHint", "CollectMetrics", "WithCTE", "CTERelationDef",
}  # fmt: skip
RELATIONS = {"LogicalRelation", "DataSourceV2Relation", "StreamingRelation", "HiveTableRelation"}
PYTHON = {
    "MapInArrow",
    "MapInPandas",
    "PythonMapInArrow",
    "FlatMapGroupsInArrow",
    "FlatMapGroupsInPandas",
    "FlatMapCoGroupsInArrow",
    "FlatMapCoGroupsInPandas",
}
# A drawn seed looks like a written one in the plan, and even with the same seed the values follow the partitions.
CLOCKS = {
    "CurrentTimestamp", "CurrentDate", "Now", "LocalTimestamp", "CurrentTime", "CurrentUser", "Uuid", "Rand", "Randn", "Shuffle",
    "RandStr", "Uniform",
}  # fmt: skip
# Expressions that choose among values: what they look at decides the value.
CHOOSING = {"CaseWhen", "If", "Coalesce", "NullIf", "Nvl", "Nvl2", "NaNvl", "Greatest", "Least"}


class _Tracer:
    def __init__(self, token: str) -> None:
        self.token = token
        self.outer: list[dict[int, Flow]] = []
        self.tables: dict[int, _Traced] = {}  # common table expressions by id

    def plan(self, nodes: list[Node]) -> _Traced:
        return self.visit(_Tree(nodes).root)

    def visit(self, node: Node) -> _Traced:
        kind = _class(node)
        if kind == "SubqueryAlias" and node["nodes"][0]["class"].rpartition(".")[2] in RELATIONS:
            return self.leaf(node)
        if kind == "WithCTE":
            return self.common_tables(node)
        if kind == "CTERelationRef":
            return self.common_table(node)
        handler = getattr(self, f"on_{kind}", None)
        if kind not in PASSING and kind not in PYTHON and handler is None:
            raise _unknown(kind)
        children = [self.visit(child) for child in node["nodes"]]
        if handler is not None:
            return handler(node, *children)
        return children[0] if kind in PASSING else self.python(node, children)

    # Leaves

    def leaf(self, alias: Node) -> _Traced:
        name = alias["identifier"]["name"]
        table, _, token = name.partition("#")
        if token != self.token:
            raise LineageError(
                "The plan reads something that the store did not hand out.",
                found=f"a relation under the alias '{name}'",
                do="name the table as a parameter of build instead of reading it there",
            )
        attributes = [_expression(attribute) for attribute in alias["nodes"][0]["output"]]
        table = table.rpartition("@")[0]
        return _Traced([_id(a) for a in attributes], {_id(a): {Ref(table, a["name"]): IDENTITY} for a in attributes})

    def on_OneRowRelation(self, node: Node) -> _Traced:
        return _Traced([], {})

    def on_Range(self, node: Node) -> _Traced:
        attributes = [_id(_expression(attribute)) for attribute in node["output"]]
        return _Traced(attributes, {attribute: {} for attribute in attributes})

    def common_tables(self, node: Node) -> _Traced:
        for index in node["cteDefs"]:
            definition = node["nodes"][index]
            self.tables[definition["id"]] = self.visit(definition)
        return self.visit(node["nodes"][node["plan"]])

    def common_table(self, node: Node) -> _Traced:
        table = self.tables[node["cteId"]]
        output = [_id(_expression(attribute)) for attribute in node["output"]]
        return _Traced(output, {new: table.flows[old] for new, old in zip(output, table.output, strict=True)}, table.indirect)

    # Nodes

    def on_Project(self, node: Node, child: _Traced) -> _Traced:
        return self.named(node["projectList"], child)

    def on_Filter(self, node: Node, child: _Traced) -> _Traced:
        return self.decided(child, [node["condition"]], FILTER)

    def on_Sort(self, node: Node, child: _Traced) -> _Traced:
        return self.decided(child, node["order"], SORT)

    def on_Distinct(self, node: Node, child: _Traced) -> _Traced:
        return _Traced(child.output, child.flows, _merge([child.indirect, _through(_merge(child.flows.values()), FILTER)]))

    def on_Deduplicate(self, node: Node, child: _Traced) -> _Traced:
        return self.decided(child, node["keys"], FILTER)

    def on_Join(self, node: Node, left: _Traced, right: _Traced) -> _Traced:
        kind = str(node["joinType"])
        one_sided = "LeftSemi" in kind or "LeftAnti" in kind
        both = _Traced(
            left.output + ([] if one_sided else right.output),
            {**left.flows, **right.flows},
            _merge([left.indirect, right.indirect]),
        )
        return self.decided(both, [node["condition"]] if node.get("condition") else [], JOIN)

    def on_Aggregate(self, node: Node, child: _Traced) -> _Traced:
        grouped = self.decided(child, node["groupingExpressions"], GROUP_BY)
        return self.named(node["aggregateExpressions"], grouped, plain=GROUP_BY)

    def on_Window(self, node: Node, child: _Traced) -> _Traced:
        added = self.named(node["windowExpressions"], child)
        decided = self.decided(child, [*node["partitionSpec"], *node["orderSpec"]], WINDOW)
        return _Traced(child.output + added.output, {**child.flows, **added.flows}, _merge([added.indirect, decided.indirect]))

    def on_Generate(self, node: Node, child: _Traced) -> _Traced:
        flow = _through(self.flow(_expression(node["generator"]), child), TRANSFORMATION)
        made = [_id(_expression(attribute)) for attribute in node["generatorOutput"]]
        return _Traced(
            child.output + made,
            {**child.flows, **{attribute: flow for attribute in made}},
            _merge([child.indirect, _through(flow, FILTER)]),
        )

    def on_Expand(self, node: Node, child: _Traced) -> _Traced:
        output = [_id(_expression(attribute)) for attribute in node["output"]]
        columns = zip(*node["projections"], strict=True)
        flows = {
            new: _merge(self.flow(_expression(e), child) for e in column) for new, column in zip(output, columns, strict=True)
        }
        return _Traced(output, flows, child.indirect)

    def on_Union(self, node: Node, *children: _Traced) -> _Traced:
        output = children[0].output
        flows = {new: _merge(child.flows[child.output[place]] for child in children) for place, new in enumerate(output)}
        return _Traced(output, flows, _merge(child.indirect for child in children))

    def on_Intersect(self, node: Node, left: _Traced, right: _Traced) -> _Traced:
        compared = _through(_merge([*left.flows.values(), *right.flows.values()]), FILTER)
        return _Traced(left.output, left.flows, _merge([left.indirect, right.indirect, compared]))

    on_Except = on_Intersect

    def python(self, node: Node, children: list[_Traced]) -> _Traced:
        """A Python function sees all its input, so all of it flows into each output column, and decides the rows."""
        everything = _merge(flow for child in children for flow in child.flows.values())
        output = [_id(_expression(attribute)) for attribute in node["output"]]
        flow = _through(everything, TRANSFORMATION)
        return _Traced(
            output,
            {attribute: flow for attribute in output},
            _merge([*(c.indirect for c in children), _through(everything, FILTER)]),
        )

    # Expressions

    def named(self, expressions: list[list[Node]], child: _Traced, plain: str | None = None) -> _Traced:
        """The output of a node that computes named expressions; `plain` is the step that a column not aggregated takes."""
        output, flows, indirect = [], {}, child.indirect
        for nodes in expressions:
            expression = _expression(nodes)
            flow = self.flow(expression, child)
            if plain and not _has(expression, "AggregateExpression"):
                flow = _through(flow, plain)
            output.append(_id(expression))
            flows[_id(expression)] = flow
            for spec in _all(expression, "WindowSpecDefinition"):
                indirect = _merge([indirect, _through(_merge(self.flow(part, child) for part in spec["nodes"]), WINDOW)])
        return _Traced(output, flows, indirect)

    def decided(self, child: _Traced, expressions: list[list[Node]], kind: str) -> _Traced:
        flow = _merge(self.flow(_expression(nodes), child) for nodes in expressions)
        return _Traced(child.output, child.flows, _merge([child.indirect, _through(flow, kind)]))

    def flow(self, expression: Node, child: _Traced) -> Flow:
        """What flows into the value of an expression over `child`'s columns."""
        kind = _class(expression)
        if kind == "AttributeReference":
            return self.attribute(expression, child)
        if kind == "OuterReference":
            return self.flow(_expression(expression["e"]), child)
        if kind == "VariableReference" or kind in CLOCKS:
            raise LineageError(
                "A build must give the same rows whenever it runs.",
                found=f"the expression {kind}",
                do="take the value from an input table, such as gold.moments",
            )
        if kind == "WindowExpression":  # its partitions and order are indirect
            return self.flow(expression["nodes"][expression["windowFunction"]], child)
        parts = [self.flow(part, child) for part in expression["nodes"]]
        if isinstance(expression.get("plan"), list):
            parts.append(self.subquery(expression, child))
        flow = _merge(parts)
        if kind == "Alias":
            return flow
        if kind == "AggregateExpression":
            return _through(flow, AGGREGATION)
        return _through(flow, CONDITIONAL if kind in CHOOSING else TRANSFORMATION)

    def attribute(self, expression: Node, child: _Traced) -> Flow:
        for scope in [child.flows, *reversed(self.outer)]:
            if _id(expression) in scope:
                return scope[_id(expression)]
        if expression["name"] in ("_metadata",):
            return {}
        raise LineageError(
            "The plan names a column that no node below it has.", found=expression["name"], do="report this as a fault of Wares"
        )

    def subquery(self, expression: Node, child: _Traced) -> Flow:
        self.outer.append(child.flows)
        try:
            inner = self.plan(expression["plan"])
        finally:
            self.outer.pop()
        return _through(_merge([*(inner.flows[attribute] for attribute in inner.output), inner.indirect]), TRANSFORMATION)


def _all(expression: Node, kind: str) -> list[Node]:
    found = [expression] if _class(expression) == kind else []
    return found + [node for part in expression["nodes"] for node in _all(part, kind)]


def _has(expression: Node, kind: str) -> bool:
    return bool(_all(expression, kind))


def _unknown(kind: str) -> LineageError:
    return LineageError(
        "The plan has a part whose origin cannot be told.",
        found=kind,
        do="stay with DataFrame operations on build's parameters: no RDD, checkpoint, createDataFrame or reader of its own",
    )
